//! First stacks, read back the way a C library reads them.

use super::*;
use alloc::vec;
use proptest::prelude::*;

const TOP: u64 = 0x7fff_ffff_f000;

fn aux() -> AuxInfo<'static> {
    AuxInfo {
        phdr: 0x40_0040,
        phent: 56,
        phnum: 7,
        entry: 0x40_1000,
        base: 0,
        random: *b"0123456789abcdef",
        hwcap: 0xbfeb_fbff,
        hwcap2: 2,
        execfn: "/bin/prog",
        uid: 1000,
        euid: 1001,
        gid: 100,
        egid: 101,
        minsigstksz: 3632,
        sysinfo_ehdr: None,
    }
}

/// The stack as a program sees it.
struct View<'a> {
    stack: &'a InitialStack,
    top: u64,
}

impl View<'_> {
    fn from(&self, at: u64) -> &[u8] {
        assert!((self.stack.rsp..self.top).contains(&at), "{at:#x}");
        let offset = usize::try_from(at - self.stack.rsp).expect("small");
        &self.stack.bytes[offset..]
    }

    fn word(&self, at: u64) -> u64 {
        u64::from_le_bytes(*self.from(at).first_chunk().expect("a whole word"))
    }

    fn string(&self, at: u64) -> &[u8] {
        let bytes = self.from(at);
        let end = bytes.iter().position(|&b| b == 0).expect("terminated");
        &bytes[..end]
    }

    /// Strings of the pointer list at `at`, and the address after its zero.
    fn strings(&self, mut at: u64) -> (Vec<&[u8]>, u64) {
        let mut strings = Vec::new();
        while self.word(at) != 0 {
            strings.push(self.string(self.word(at)));
            at += 8;
        }
        (strings, at + 8)
    }

    fn vector(&self, mut at: u64) -> Vec<(u64, u64)> {
        let mut vector = Vec::new();
        while self.word(at) != AT_NULL {
            vector.push((self.word(at), self.word(at + 8)));
            at += 16;
        }
        vector
    }
}

fn check(top: u64, argv: &[&[u8]], envp: &[&[u8]]) -> Vec<(u64, u64)> {
    let stack = build(top, argv.iter().copied(), envp.iter().copied(), &aux()).expect("fits");
    let view = View { stack: &stack, top };
    assert_eq!(stack.rsp % 16, 0);
    assert_eq!(u64::try_from(stack.bytes.len()), Ok(top - stack.rsp));
    assert_eq!(usize::try_from(view.word(stack.rsp)), Ok(argv.len()));
    let (args, at) = view.strings(stack.rsp + 8);
    assert_eq!(args, argv);
    let (variables, at) = view.strings(at);
    assert_eq!(variables, envp);
    let vector = view.vector(at);
    let get = |key| {
        vector
            .iter()
            .find(|entry| entry.0 == key)
            .map(|entry| entry.1)
    };
    let pointer = |key| get(key).expect("present");
    assert_eq!(view.string(pointer(AT_EXECFN)), b"/bin/prog");
    assert_eq!(view.string(pointer(AT_PLATFORM)), b"x86_64");
    assert_eq!(view.from(pointer(AT_RANDOM))[..16], aux().random);
    vector
}

#[test]
fn a_program_finds_its_strings_and_its_vector() {
    let vector = check(TOP, &[b"prog", b"", b"-x"], &[b"HOME=/", b"A=b=c"]);
    for entry in [
        (AT_PHDR, 0x40_0040),
        (AT_PHENT, 56),
        (AT_PHNUM, 7),
        (AT_PAGESZ, 4096),
        (AT_BASE, 0),
        (AT_ENTRY, 0x40_1000),
        (AT_UID, 1000),
        (AT_EUID, 1001),
        (AT_GID, 100),
        (AT_EGID, 101),
        (AT_HWCAP, 0xbfeb_fbff),
        (AT_HWCAP2, 2),
        (AT_CLKTCK, 100),
        (AT_SECURE, 0),
        (AT_MINSIGSTKSZ, 3632),
    ] {
        assert!(vector.contains(&entry), "{entry:?}");
    }
    assert!(vector.iter().all(|entry| entry.0 != AT_SYSINFO_EHDR));
}

#[test]
fn the_vdso_is_announced_when_there_is_one() {
    let aux = AuxInfo {
        sysinfo_ehdr: Some(0x7000),
        ..aux()
    };
    let stack = build(TOP, [], [], &aux).expect("fits");
    let view = View {
        stack: &stack,
        top: TOP,
    };
    let vector = view.vector(stack.rsp + 24);
    assert_eq!(vector.first(), Some(&(AT_SYSINFO_EHDR, 0x7000)));
    assert_eq!(vector.len() + 1, MAX_AUX);
}

#[test]
fn arguments_and_environment_stand_in_one_piece() {
    let stack = build(TOP, [b"ab".as_slice()], [b"C=d".as_slice()], &aux()).expect("fits");
    let joined = b"ab\0C=d\0/bin/prog\0";
    assert!(stack.bytes.windows(joined.len()).any(|w| w == joined));
    assert!(stack.bytes.ends_with(&[0; 9]));
}

#[test]
fn too_much_is_refused_in_every_form() {
    let long = vec![b'a'; 1 << 20];
    let too_long = Err(StackError::TooLong);
    assert_eq!(build(TOP, [long.as_slice()], [], &aux()), too_long);
    assert_eq!(build(TOP, [], [long.as_slice()], &aux()), too_long);
    let endless = core::iter::repeat(b"".as_slice());
    assert_eq!(build(TOP, endless, [], &aux()), too_long);
    for top in [0, 8, 15, 64, 100, 300] {
        assert_eq!(build(top, [], [], &aux()), too_long, "{top}");
    }
}

#[test]
fn the_limit_is_the_whole_stack_not_the_strings() {
    let fits = |len: usize| {
        let argument = vec![b'a'; len];
        build(TOP, [argument.as_slice()], [], &aux()).map(|stack| stack.bytes.len())
    };
    let most = (1 << 20) - 1024;
    let used = fits(most).expect("1 KiB is enough for the rest");
    let spare = (1 << 20) - used;
    assert_eq!(fits(most + spare), Ok(1 << 20));
    assert_eq!(fits(most + spare + 16), Err(StackError::TooLong));
}

#[test]
fn strings_with_a_zero_byte_are_refused() {
    let cut = [b"a\0b".as_slice()];
    assert_eq!(build(TOP, cut, [], &aux()), Err(StackError::ZeroByte));
    assert_eq!(build(TOP, [], cut, &aux()), Err(StackError::ZeroByte));
}

proptest! {
    #[test]
    fn any_strings_come_back_at_any_top(
        argv in prop::collection::vec(prop::collection::vec(1u8.., 0..20), 0..20),
        envp in prop::collection::vec(prop::collection::vec(1u8.., 0..20), 0..20),
        odd in 0u64..64,
    ) {
        let argv: Vec<_> = argv.iter().map(Vec::as_slice).collect();
        let envp: Vec<_> = envp.iter().map(Vec::as_slice).collect();
        check(TOP - odd, &argv, &envp);
    }

    #[test]
    fn arbitrary_tops_never_panic(top: u64) {
        let stack = build(top, [b"a".as_slice()], [], &aux());
        prop_assert!(stack.is_ok() || top < MAX_BYTES);
    }
}
