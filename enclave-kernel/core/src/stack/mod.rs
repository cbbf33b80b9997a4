//! The first stack of a program, as Linux lays it out on x86-64.
//!
//! Called by the loader once per program; the bytes go to `[rsp, top)`
//! (System V ABI, AMD64 supplement, section 3.4.1; getauxval(3)):
//!
//! ```text
//! top   8 zero bytes
//!       execfn\0
//!       environment strings, after them nothing between …
//!       argument strings    … as programs that rename themselves expect
//!       "x86_64\0"
//!       16 random bytes
//!       padding
//!       auxiliary vector, ends with AT_NULL
//!       pointers to environment strings, 0
//!       pointers to argument strings, 0
//! rsp   argc                                (16-byte aligned)
//! ```
//!
//! Promises: total on any strings; every pointer points into `[rsp, top)`.
//! Does not know the stack's size: the caller compares.

#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;

use crate::errno::Errno;
use enclave_abi::addr::{PAGE_SIZE, align_down};

/// Most bytes the first stack may take.
pub const MAX_BYTES: u64 = 1 << 20;

const AT_NULL: u64 = 0;
const AT_PHDR: u64 = 3;
const AT_PHENT: u64 = 4;
const AT_PHNUM: u64 = 5;
const AT_PAGESZ: u64 = 6;
const AT_BASE: u64 = 7;
const AT_FLAGS: u64 = 8;
const AT_ENTRY: u64 = 9;
const AT_UID: u64 = 11;
const AT_EUID: u64 = 12;
const AT_GID: u64 = 13;
const AT_EGID: u64 = 14;
const AT_PLATFORM: u64 = 15;
const AT_HWCAP: u64 = 16;
const AT_CLKTCK: u64 = 17;
const AT_SECURE: u64 = 23;
const AT_RANDOM: u64 = 25;
const AT_HWCAP2: u64 = 26;
const AT_EXECFN: u64 = 31;
const AT_SYSINFO_EHDR: u64 = 33;
const AT_MINSIGSTKSZ: u64 = 51;

/// Entries of a full auxiliary vector, AT_NULL included.
const MAX_AUX: usize = 21;

/// Ticks per second that times(2) counts in.
const CLOCK_TICKS: u64 = 100;
const PLATFORM: &[u8] = b"x86_64\0";
const STACK_ALIGN: u64 = 16;

/// What the auxiliary vector tells besides constants.
#[derive(Clone, Copy, Debug)]
pub struct AuxInfo<'a> {
    /// Address of the program headers ([`crate::exec::LoadPlan::phdr`]).
    pub phdr: u64,
    /// Bytes of one program header.
    pub phent: u16,
    /// Number of program headers.
    pub phnum: u16,
    /// First instruction.
    pub entry: u64,
    /// Address of the interpreter; 0, as there is none.
    pub base: u64,
    /// Random bytes, for stack protectors and hash seeds.
    pub random: [u8; 16],
    /// CPUID leaf 1 EDX.
    pub hwcap: u64,
    /// Linux's AT_HWCAP2 bits.
    pub hwcap2: u64,
    /// Path the program was started by.
    pub execfn: &'a str,
    /// Real user id.
    pub uid: u32,
    /// Effective user id.
    pub euid: u32,
    /// Real group id.
    pub gid: u32,
    /// Effective group id.
    pub egid: u32,
    /// Least bytes of a signal stack: signal frame plus XSAVE area.
    pub minsigstksz: u64,
    /// Address of the vDSO's ELF header, if there is one.
    pub sysinfo_ehdr: Option<u64>,
}

/// A first stack, ready to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialStack {
    /// Goes to `[rsp, top)`.
    pub bytes: Vec<u8>,
    /// Stack pointer at the first instruction; 16-byte aligned, argc is there.
    pub rsp: u64,
}

/// Why no stack was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackError {
    /// More than [`MAX_BYTES`], or more than there is below `top`.
    TooLong,
    /// A string holds a zero byte, so the program would see it cut.
    ZeroByte,
}

impl StackError {
    /// What a program that asked for this one is told.
    pub const fn errno(self) -> Errno {
        match self {
            Self::TooLong => Errno::E2BIG,
            Self::ZeroByte => Errno::EINVAL,
        }
    }
}

impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(
                f,
                "arguments and environment need more than {MAX_BYTES} bytes of stack"
            ),
            Self::ZeroByte => f.write_str("an argument or environment string holds a zero byte"),
        }
    }
}

impl core::error::Error for StackError {}

/// Builds the first stack of a program below `top`.
///
/// `argv` and `envp` are strings without their terminating zero.
///
/// # Errors
/// [`StackError::TooLong`] and [`StackError::ZeroByte`].
pub fn build<'a>(
    top: u64,
    argv: impl IntoIterator<Item = &'a [u8]>,
    envp: impl IntoIterator<Item = &'a [u8]>,
    aux: &AuxInfo<'_>,
) -> Result<InitialStack, StackError> {
    let mut strings = Strings::default();
    let platform = strings.len();
    strings.bytes.extend_from_slice(PLATFORM);
    for arg in argv {
        strings.push(arg)?;
    }
    let argc = strings.offsets.len();
    for variable in envp {
        strings.push(variable)?;
    }
    let execfn = strings.len();
    strings.push(aux.execfn.as_bytes())?;
    strings.offsets.pop();
    strings.bytes.extend_from_slice(&[0; 8]);

    let nr_pointers = strings.offsets.len();
    let strings_base = top.checked_sub(strings.len()).ok_or(StackError::TooLong)?;
    let random = strings_base.checked_sub(16).ok_or(StackError::TooLong)?;
    let vector = auxiliary(aux, random, strings_base + platform, strings_base + execfn);
    // argc, both pointer lists with their zeros, the auxiliary vector.
    let words = 1 + nr_pointers + 2 + 2 * vector.len();
    let table_bytes = u64::try_from(8 * words).map_err(|_| StackError::TooLong)?;
    let rsp = random.checked_sub(table_bytes).ok_or(StackError::TooLong)?;
    let rsp = align_down(rsp, STACK_ALIGN);
    if top - rsp > MAX_BYTES {
        return Err(StackError::TooLong);
    }

    let total = usize::try_from(top - rsp).map_err(|_| StackError::TooLong)?;
    let mut bytes = Vec::with_capacity(total);
    let mut word = |value: u64| bytes.extend_from_slice(&value.to_le_bytes());
    let (args, variables) = strings.offsets.split_at(argc);
    word(u64::try_from(argc).map_err(|_| StackError::TooLong)?);
    for list in [args, variables] {
        list.iter().for_each(|offset| word(strings_base + offset));
        word(0);
    }
    for (key, value) in vector {
        word(key);
        word(value);
    }
    bytes.resize(total - strings.bytes.len() - aux.random.len(), 0);
    bytes.extend_from_slice(&aux.random);
    bytes.extend_from_slice(&strings.bytes);
    Ok(InitialStack { bytes, rsp })
}

/// Strings one after another, with the offset of each that was pushed.
#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
    offsets: Vec<u64>,
}

impl Strings {
    fn len(&self) -> u64 {
        // A usize always fits 64 bits on this architecture.
        u64::try_from(self.bytes.len()).unwrap_or(u64::MAX)
    }

    /// Appends a string and its terminating zero.
    fn push(&mut self, string: &[u8]) -> Result<(), StackError> {
        let offset = self.len();
        // The pointer counts as well, so that endless empty strings end here.
        let pointers = 8 * u64::try_from(self.offsets.len()).unwrap_or(u64::MAX / 8);
        let grown = u64::try_from(string.len()).ok().and_then(|bytes| {
            let sum = offset.checked_add(pointers)?;
            sum.checked_add(bytes)
        });
        if grown.is_none_or(|bytes| bytes > MAX_BYTES) {
            return Err(StackError::TooLong);
        }
        if string.contains(&0) {
            return Err(StackError::ZeroByte);
        }
        self.bytes.extend_from_slice(string);
        self.bytes.push(0);
        self.offsets.push(offset);
        Ok(())
    }
}

/// The auxiliary vector, with the addresses of what it points to.
fn auxiliary(aux: &AuxInfo<'_>, random: u64, platform: u64, execfn: u64) -> Vec<(u64, u64)> {
    let mut vector = Vec::with_capacity(MAX_AUX);
    // Linux puts it first, and debuggers look there.
    vector.extend(aux.sysinfo_ehdr.map(|ehdr| (AT_SYSINFO_EHDR, ehdr)));
    vector.extend_from_slice(&[
        (AT_HWCAP, aux.hwcap),
        (AT_PAGESZ, PAGE_SIZE),
        (AT_CLKTCK, CLOCK_TICKS),
        (AT_PHDR, aux.phdr),
        (AT_PHENT, u64::from(aux.phent)),
        (AT_PHNUM, u64::from(aux.phnum)),
        (AT_BASE, aux.base),
        (AT_FLAGS, 0),
        (AT_ENTRY, aux.entry),
        (AT_UID, u64::from(aux.uid)),
        (AT_EUID, u64::from(aux.euid)),
        (AT_GID, u64::from(aux.gid)),
        (AT_EGID, u64::from(aux.egid)),
        (AT_SECURE, 0),
        (AT_RANDOM, random),
        (AT_HWCAP2, aux.hwcap2),
        (AT_EXECFN, execfn),
        (AT_PLATFORM, platform),
        (AT_MINSIGSTKSZ, aux.minsigstksz),
        (AT_NULL, 0),
    ]);
    vector
}
