//! Signals against what Linux says of them, and against hostile frames.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::extended::float_state;
use super::number::{SIGALRM, SIGPIPE, SIGRTMIN};
use super::*;

const LAYOUT: Layout = Layout {
    components: 0b1110_0111,
    bytes: 2688,
};
const MASK: u32 = 0xffff;

fn sent(signal: u8) -> Info {
    Info::sent(signal, code::SI_TKILL, 2, 0)
}

fn queued(signal: u8, value: u64) -> Info {
    Info::new(signal, -1, [2, value, 0, 0])
}

#[test]
fn signals_of_instructions_come_first_and_then_low_numbers() {
    assert_eq!(first_of(0), None);
    assert_eq!(first_of(bit(64)), Some(64));
    assert_eq!(first_of(bit(1) | bit(11) | bit(7)), Some(7));
    assert_eq!(first_of(bit(2) | bit(40)), Some(2));
    assert_eq!(bit(0), 0);
    assert_eq!(bit(65), 0);
}

#[test]
fn masks_follow_sigprocmask_and_never_hold_kill_and_stop() {
    assert_eq!(mask_after(1, 0, 2), Ok(3));
    assert_eq!(mask_after(3, 1, 2), Ok(1));
    assert_eq!(mask_after(3, 2, u64::MAX), Ok(!UNBLOCKABLE));
    assert_eq!(mask_after(3, 3, 2), Err(Errno::EINVAL));
}

#[test]
fn actions_say_what_is_blocked_and_how_often_they_act() {
    let mut actions = Actions::default();
    let once = Action {
        handler: 0x4000,
        flags: flag::SA_RESETHAND,
        restorer: 0x5000,
        mask: bit(1),
    };
    actions.set(SIGALRM, once);
    assert_eq!(actions.of(SIGALRM).disposition(SIGALRM), Disposition::Call);
    assert_eq!(once.mask_inside(bit(3), SIGALRM), bit(1) | bit(3) | bit(14));
    let open = Action {
        flags: flag::SA_NODEFER,
        ..once
    };
    assert_eq!(open.mask_inside(0, SIGALRM), bit(1));
    assert_eq!(actions.take(SIGALRM), once);
    assert_eq!(
        actions.of(SIGALRM).disposition(SIGALRM),
        Disposition::Terminate
    );
    actions.set(0, once);
    actions.set(65, once);
    assert_eq!(actions.of(65), Action::default());
}

#[test]
fn forced_signals_end_whoever_blocks_or_ignores_them() {
    let handler = Action {
        handler: 0x4000,
        ..Action::default()
    };
    let ignored = Action {
        handler: SIG_IGN,
        ..Action::default()
    };
    for (action, is_blocked, disposition) in [
        (handler, false, Disposition::Call),
        (handler, true, Disposition::Terminate),
        (ignored, false, Disposition::Terminate),
    ] {
        let mut actions = Actions::default();
        actions.set(SIGSEGV, action);
        actions.force(SIGSEGV, is_blocked);
        assert_eq!(actions.of(SIGSEGV).disposition(SIGSEGV), disposition);
    }
}

#[test]
fn ordinary_signals_wait_once_and_real_time_ones_in_order() {
    let (mut pending, mut budget) = (Pending::default(), Budget::default());
    for value in 0..3 {
        for signal in [SIGPIPE, SIGRTMIN + 2] {
            pending.add(queued(signal, value), &mut budget).unwrap();
        }
    }
    assert_eq!(pending.set(), bit(SIGPIPE) | bit(SIGRTMIN + 2));
    assert_eq!(budget.left(), MAX_QUEUED - 4);
    assert_eq!(pending.take(0, &mut budget), None);
    let mut taken = Vec::new();
    while let Some(info) = pending.take(u64::MAX, &mut budget) {
        taken.push(info);
    }
    let expected: Vec<Info> = [(SIGPIPE, 0), (34, 0), (34, 1), (34, 2)]
        .map(|(signal, value)| queued(signal, value))
        .to_vec();
    assert_eq!(taken, expected);
    assert_eq!((pending.set(), budget.left()), (0, MAX_QUEUED));
}

#[test]
fn a_flood_is_bounded_and_ordinary_signals_come_through_it() {
    let (mut pending, mut budget) = (Pending::default(), Budget::default());
    for value in 0..MAX_QUEUED as u64 {
        pending.add(queued(SIGRTMIN, value), &mut budget).unwrap();
    }
    let refused = pending.add(queued(SIGRTMIN, 0), &mut budget);
    assert_eq!(refused, Err(Errno::EAGAIN));
    let by_kill = Info::sent(SIGRTMIN + 1, code::SI_USER, 2, 0);
    assert_eq!(pending.add(by_kill, &mut budget), Ok(()));
    assert_eq!(pending.add(sent(SIGPIPE), &mut budget), Ok(()));
    let first = pending.take(u64::MAX, &mut budget).unwrap();
    assert_eq!((first.signal(), first.code()), (SIGPIPE, code::SI_USER));
    pending.drop_all(bit(SIGRTMIN), &mut budget);
    assert_eq!(pending.set(), bit(SIGRTMIN + 1));
    assert_eq!(budget.left(), MAX_QUEUED);
}

#[test]
fn siginfo_of_a_program_is_kept_as_far_as_linux_does() {
    let mut words = [0; Info::WORDS];
    words[0] = 5 | 7 << 32;
    words[3] = 99;
    let info = Info::from_words(34, &words).unwrap();
    assert_eq!(info.to_words()[0], 34 | 7 << 32);
    assert_eq!(info.to_words()[3], 99);
    words[6] = 1;
    assert_eq!(Info::from_words(34, &words), None);
}

#[test]
fn faults_are_told_as_linux_tells_them() {
    let fault = |vector, is_mapped| Fault {
        vector,
        address: 0x10,
        rip: 0x4000,
        is_mapped,
        ..Fault::default()
    };
    for (vector, is_mapped, signal, code, address) in [
        (0, false, 8, code::FPE_INTDIV, 0x4000),
        (3, false, 5, code::SI_KERNEL, 0),
        (6, false, 4, code::ILL_ILLOPN, 0x4000),
        (12, false, 7, code::SI_KERNEL, 0),
        (13, false, 11, code::SI_KERNEL, 0),
        (14, false, 11, code::SEGV_MAPERR, 0x10),
        (14, true, 11, code::SEGV_ACCERR, 0x10),
        (17, true, 7, code::BUS_ADRALN, 0),
        (0x100, false, 11, code::SI_KERNEL, 0),
    ] {
        let info = fault(vector, is_mapped).info();
        assert_eq!(info, Info::at(signal, code, address), "{vector}");
    }
    let stepped = Fault {
        rflags: 0x100,
        ..fault(1, false)
    };
    assert_eq!(stepped.info().code(), code::TRAP_TRACE);
    assert_eq!(fault(1, false).info().code(), code::TRAP_BRKPT);
}

#[test]
fn float_codes_name_what_is_not_masked() {
    assert_eq!(float_code(16, 0x37e, 1, 0), code::FPE_FLTINV);
    assert_eq!(float_code(16, 0x37f, 1, 0), 0);
    assert_eq!(float_code(19, 0, 0, 0x1d84), code::FPE_FLTDIV);
    assert_eq!(float_code(19, 0, 0, 0x1b88), code::FPE_FLTOVF);
    assert_eq!(float_code(19, 0, 0, 0x0fa0), code::FPE_FLTRES);
    assert_eq!(float_code(19, 0, 0, 0x1f84), 0);
}

#[test]
fn interrupted_calls_end_or_begin_anew() {
    for restart in [
        Restart::IfWanted,
        Restart::Never,
        Restart::Timed,
        Restart::Always,
    ] {
        for is_back in [false, true] {
            let answer = restart.to_answer(is_back);
            assert_eq!(Restart::from_answer(answer), Some((restart, is_back)));
            assert!(Errno::from_result(answer).is_some_and(|errno| errno.name().is_none()));
        }
        assert_eq!(restart.resume(None), Resume::Again);
        let with_flag = match restart {
            Restart::IfWanted | Restart::Always => Resume::Again,
            Restart::Never | Restart::Timed => Resume::Interrupted,
        };
        assert_eq!(restart.resume(Some(true)), with_flag);
    }
    assert_eq!(Restart::IfWanted.resume(Some(false)), Resume::Interrupted);
    for answer in [0, 4, Errno::EINTR.to_result(), Errno::ENOSYS.to_result()] {
        assert_eq!(Restart::from_answer(answer), None);
    }
    assert_eq!(Restart::of_call(0), Restart::IfWanted);
    assert_eq!(Restart::of_call(271), Restart::Never);
    assert_eq!(Restart::of_call(1030), Restart::Never);
}

#[test]
fn alternate_stacks_are_checked_and_used_once() {
    let stack = AltStack::from_words([0x1000, 0, 0x4000]).unwrap();
    assert_eq!(AltStack::from_words([0x1000, 0, 100]), Err(Errno::ENOMEM));
    assert_eq!(
        AltStack::from_words([0x1000, 77, 0x4000]),
        Err(Errno::EINVAL)
    );
    assert_eq!(stack.top(0x9000), Some(0x5000));
    assert_eq!(stack.top(0x3000), None);
    assert_eq!(stack.to_words(0x3000), [0x1000, 1, 0x4000]);
    assert_eq!(stack.to_words(0x9000), [0x1000, 0, 0x4000]);
    assert_eq!(AltStack::default().to_words(0x3000), [0, 2, 0]);
    assert_eq!(AltStack::default().top(0x3000), None);
    let disarming = AltStack::from_words([0x1000, 1 << 31, 0x4000]).unwrap();
    assert_eq!(disarming.top(0x3000), Some(0x5000));
    assert_eq!(disarming.when_entered(), AltStack::default());
    assert_eq!(stack.when_entered(), stack);
}

#[test]
fn frames_lie_where_functions_expect_them() {
    let none = AltStack::default();
    let at = place(0x7fff_0000, none, false, LAYOUT.frame_bytes()).unwrap();
    assert!(at.frame % 16 == 8 && at.state.is_multiple_of(64));
    assert!(at.frame + FRAME_BYTES <= at.state);
    assert!(at.state + LAYOUT.frame_bytes() <= 0x7fff_0000 - 128);
    let alt = AltStack::from_words([0x10_0000, 0, 0x4000]).unwrap();
    let on_alt = place(0x7fff_0000, alt, true, LAYOUT.frame_bytes()).unwrap();
    assert!((0x10_0000..0x10_4000).contains(&on_alt.frame));
    assert_eq!(
        place(0x7fff_0000, alt, false, LAYOUT.frame_bytes()),
        Some(at)
    );
    // Nested frames stay on it until it is full.
    let mut rsp = on_alt.frame;
    let mut depth = 0;
    while let Some(next) = place(rsp, alt, true, LAYOUT.frame_bytes()) {
        assert!(next.frame < rsp && alt.holds(next.frame));
        rsp = next.frame;
        depth += 1;
    }
    assert_eq!(depth, 3);
}

#[test]
fn what_a_frame_says_comes_back() {
    let registers: Registers = core::array::from_fn(|n| n as u64 * 3 + 1);
    let words = compose(&Contents {
        restorer: 0x4000,
        registers,
        segments: [0x33, 0x2b],
        fault: [6, 14, 0x10],
        mask: bit(5),
        alt: [1, 2, 3],
        state: 0x5000,
        info: sent(10),
    });
    assert_eq!(words[24], 0x33 | 0x2b << 48);
    assert_eq!(words[39], 10);
    let restored = Restored::from_words(&words, 0x202).unwrap();
    let mut expected = registers;
    expected[17] = 0x202 | registers[17] & 0x5_0dd5;
    assert_eq!(restored.registers, expected);
    assert_eq!((restored.mask, restored.alt), (bit(5), [1, 2, 3]));
    assert_eq!(restored.state, 0x5000);
}

fn from(source: &[u8]) -> impl FnMut(u64, &mut [u8]) -> Option<()> + '_ {
    move |offset, into| {
        let start = usize::try_from(offset).ok()?;
        into.copy_from_slice(source.get(start..start.checked_add(into.len())?)?);
        Some(())
    }
}

#[test]
fn a_saved_state_comes_back_as_it_was() {
    let mut saved = vec![0u8; usize::try_from(LAYOUT.frame_bytes()).unwrap()];
    initial(&mut saved);
    saved[160] = 77;
    saved[512] = 0b111;
    saved[576] = 99;
    mark(&mut saved, LAYOUT);
    let mut area = vec![1u8; 4096];
    restore(&mut area, LAYOUT, MASK, from(&saved)).unwrap();
    assert_eq!((area[160], area[576], area[512]), (77, 99, 0b111));
    assert_eq!(float_state(&area), (0x37f, 0, 0x1f80));
    // Without its second mark it is the legacy part alone.
    let end = LAYOUT.bytes;
    saved[end] ^= 1;
    restore(&mut area, LAYOUT, MASK, from(&saved)).unwrap();
    assert_eq!((area[160], area[576], area[512]), (77, 0, 0b11));
}

#[test]
fn what_the_processor_would_refuse_is_refused() {
    let mut good = vec![0u8; usize::try_from(LAYOUT.frame_bytes()).unwrap()];
    initial(&mut good);
    mark(&mut good, LAYOUT);
    for (at, value) in [
        (26, 1u8),
        (513, 1),
        (512, 8),
        (520, 1),
        (527, 0x80),
        (575, 1),
    ] {
        let mut bad = good.clone();
        bad[at] |= value;
        let mut area = vec![0u8; 4096];
        assert_eq!(restore(&mut area, LAYOUT, MASK, from(&bad)), None, "{at}");
    }
    let mut area = vec![0u8; 4096];
    assert_eq!(restore(&mut area, LAYOUT, MASK, from(&good[..600])), None);
}

proptest! {
    /// Whatever a program hands back, the processor takes what comes out.
    #[test]
    fn no_state_makes_the_processor_fault(
        mut bytes in prop::collection::vec(any::<u8>(), 2692),
        is_marked in any::<bool>(),
        size in prop_oneof![Just(2688u32), Just(832), 0..4000u32],
        has_header in any::<bool>(),
    ) {
        if is_marked {
            mark(&mut bytes, LAYOUT);
            bytes[480..484].copy_from_slice(&size.to_le_bytes());
        }
        if has_header {
            bytes[512] &= 0b1110_0111;
            bytes[513..576].fill(0);
            bytes[26..28].fill(0);
        }
        let mut area = vec![0u8; 4096];
        if restore(&mut area, LAYOUT, MASK, from(&bytes)).is_some() {
            let present = u64::from_le_bytes(area[512..520].try_into().unwrap());
            prop_assert_eq!(present & !LAYOUT.components, 0);
            prop_assert_eq!(present & 0b11, 0b11);
            prop_assert!(area[520..576].iter().all(|&byte| byte == 0));
            prop_assert_eq!(float_state(&area).2 & !MASK, 0);
        }
    }

    /// Whatever a frame says, RIP is a program's and so are the flags.
    #[test]
    fn no_frame_leads_out_of_the_program(words in prop::array::uniform32(any::<u64>()), rip in any::<u64>()) {
        let mut frame = [0; FRAME_WORDS];
        frame[6..38].copy_from_slice(&words);
        frame[22] = rip;
        match Restored::from_words(&frame, 0x202) {
            Some(restored) => {
                prop_assert!(restored.registers[16] < enclave_abi::layout::USER_END);
                prop_assert_eq!(restored.registers[17] & !0x5_0dd5, 0x202);
                prop_assert_eq!(restored.mask & UNBLOCKABLE, 0);
            }
            None => prop_assert!(rip >= enclave_abi::layout::USER_END),
        }
    }

    /// Wherever a stack pointer is, a frame lies below it or on the other stack.
    #[test]
    fn no_stack_pointer_places_a_frame_elsewhere(
        rsp in any::<u64>(), base in any::<u64>(), size in any::<u64>(), wants_alt in any::<bool>(),
    ) {
        let alt = AltStack::from_words([base, 0, size]).unwrap_or_default();
        if let Some(at) = place(rsp, alt, wants_alt, LAYOUT.frame_bytes()) {
            prop_assert!(at.frame % 16 == 8 && at.state.is_multiple_of(64));
            prop_assert!(at.frame + FRAME_BYTES <= at.state);
            prop_assert!(at.frame < rsp || alt.holds(at.frame));
        }
    }

    /// Against a list: the same signals come out, in the same order.
    #[test]
    fn queues_are_those_of_a_list(
        steps in prop::collection::vec((1..=64u8, any::<bool>(), any::<u64>()), 1..200),
    ) {
        let (mut pending, mut budget) = (Pending::default(), Budget::default());
        let mut list: Vec<Info> = Vec::new();
        for (signal, adds, word) in steps {
            if adds {
                let info = queued(signal, word);
                pending.add(info, &mut budget).unwrap();
                if signal >= SIGRTMIN || list.iter().all(|i| i.signal() != signal) {
                    list.push(info);
                }
            } else {
                let set = list.iter().fold(0, |set, info| set | bit(info.signal()));
                prop_assert_eq!(pending.set(), set);
                let wanted = first_of(set & word);
                let at = wanted.and_then(|s| list.iter().position(|i| i.signal() == s));
                let expected = at.map(|at| list.remove(at));
                prop_assert_eq!(pending.take(word, &mut budget), expected);
            }
            prop_assert_eq!(budget.left(), MAX_QUEUED - list.len());
        }
    }
}
