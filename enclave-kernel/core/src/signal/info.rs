//! What a handler is told about its signal (siginfo_t).

/// Where a signal comes from: `si_code`.
pub mod code {
    #![expect(missing_docs, reason = "the names are those of sigaction(2)")]
    pub const SI_USER: i32 = 0;
    pub const SI_KERNEL: i32 = 0x80;
    pub const SI_TIMER: i32 = -2;
    pub const SI_TKILL: i32 = -6;
    pub const ILL_ILLOPN: i32 = 2;
    pub const FPE_INTDIV: i32 = 1;
    pub const FPE_FLTDIV: i32 = 3;
    pub const FPE_FLTOVF: i32 = 4;
    pub const FPE_FLTUND: i32 = 5;
    pub const FPE_FLTRES: i32 = 6;
    pub const FPE_FLTINV: i32 = 7;
    pub const SEGV_MAPERR: i32 = 1;
    pub const SEGV_ACCERR: i32 = 2;
    pub const BUS_ADRALN: i32 = 1;
    pub const TRAP_BRKPT: i32 = 1;
    pub const TRAP_TRACE: i32 = 2;
}

/// The part of a siginfo_t that Linux keeps: 48 bytes, then zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    words: [u64; 6],
}

impl Info {
    /// Words of a siginfo_t.
    pub const WORDS: usize = 16;

    /// The signal, its origin, and what else there is to say.
    #[must_use]
    pub const fn new(signal: u8, code: i32, fields: [u64; 4]) -> Self {
        let [a, b, c, d] = fields;
        Self {
            words: [signal as u64, code.cast_unsigned() as u64, a, b, c, d],
        }
    }

    /// Sent by process `pid` of user `uid`.
    #[must_use]
    pub const fn sent(signal: u8, code: i32, pid: u32, uid: u32) -> Self {
        Self::new(signal, code, [pid as u64 | (uid as u64) << 32, 0, 0, 0])
    }

    /// About an instruction and an address.
    #[must_use]
    pub const fn at(signal: u8, code: i32, address: u64) -> Self {
        Self::new(signal, code, [address, 0, 0, 0])
    }

    /// What a program says itself (rt_sigqueueinfo(2)), about `signal`; `None`
    /// when it says more than there is room for.
    #[must_use]
    pub fn from_words(signal: u8, words: &[u64; Self::WORDS]) -> Option<Self> {
        let (kept, rest) = words.split_first_chunk()?;
        if rest.iter().any(|&word| word != 0) {
            return None;
        }
        let mut info = Self { words: *kept };
        // The number is the call's; si_errno is the program's.
        info.words[0] = info.words[0] & !0xffff_ffff | u64::from(signal);
        Some(info)
    }

    /// The words of a siginfo_t.
    #[must_use]
    pub fn to_words(self) -> [u64; Self::WORDS] {
        let mut all = [0; Self::WORDS];
        for (to, from) in all.iter_mut().zip(self.words) {
            *to = from;
        }
        all
    }

    /// The signal.
    #[must_use]
    pub const fn signal(&self) -> u8 {
        (self.words[0] & 0xff) as u8
    }

    /// Its origin, see [`code`].
    #[must_use]
    pub const fn code(&self) -> i32 {
        (self.words[1] & 0xffff_ffff) as u32 as i32
    }

    /// The same with another first field.
    #[must_use]
    pub const fn with_field(mut self, field: u64) -> Self {
        self.words[2] = field;
        self
    }

    /// The first field: who sent it, or the address of a fault.
    #[must_use]
    pub const fn field(&self) -> u64 {
        self.words[2]
    }
}
