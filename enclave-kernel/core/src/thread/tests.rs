//! The queues by example, and against a model that keeps one list of threads.

use super::*;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

const MAIN: Tid = 2;
const FOREVER: Option<u64> = None;
/// What waits answer that end by time.
const LATE: u64 = 110;
/// What waits answer that a signal ends.
const BROKEN: u64 = 4;

fn at(address: u64, deadline: Option<u64>) -> Wait {
    Wait {
        futex: Some((address, u32::MAX)),
        deadline,
        late: LATE,
        broken: BROKEN,
    }
}

/// A program with `count` threads, the first of which runs.
fn program(count: u32) -> Threads<()> {
    let mut threads = Threads::new(MAIN, (), 1);
    for nr in 1..count {
        assert_eq!(threads.spawn(0, ()), Ok(MAIN + nr));
    }
    threads
}

#[test]
fn threads_run_in_the_order_in_which_they_became_ready() {
    let mut threads = program(3);
    assert_eq!(threads.next(0, 0), Next::Run(2, 0), "who runs goes on");
    assert!(threads.step_back(0));
    assert_eq!(threads.next(0, 0), Next::Run(3, 0));
    assert!(threads.step_back(0));
    assert_eq!(threads.next(0, 0), Next::Run(4, 0));
    assert!(threads.step_back(0));
    assert_eq!(threads.next(0, 0), Next::Run(2, 0));
}

#[test]
fn a_lone_thread_does_not_step_back() {
    let mut threads = program(1);
    assert!(!threads.step_back(0));
    assert_eq!(threads.next(0, 0), Next::Run(MAIN, 0));
}

#[test]
fn wakes_reach_the_oldest_waiters_of_their_word_only() {
    let mut threads = program(4);
    for address in [0x10, 0x20, 0x10] {
        threads.block(0, at(address, FOREVER));
        threads.next(0, 0);
    }
    assert_eq!(threads.wake(0x30, u32::MAX, 9), 0);
    assert_eq!(threads.wake(0x10, u32::MAX, 1), 1);
    assert!(threads.step_back(0));
    assert_eq!(threads.next(0, 0), Next::Run(2, 0));
    assert_eq!(threads.wake(0x10, u32::MAX, 9), 1);
    assert_eq!(threads.waiting(), 1);
}

#[test]
fn a_wake_finds_those_who_named_one_of_its_bits() {
    let mut threads = program(3);
    for mask in [1, 2] {
        threads.block(
            0,
            Wait {
                futex: Some((8, mask)),
                deadline: None,
                late: LATE,
                broken: BROKEN,
            },
        );
        threads.next(0, 0);
    }
    assert_eq!(threads.wake(8, 4, 9), 0);
    assert_eq!(threads.wake(8, 2, 9), 1);
    assert!(threads.step_back(0));
    assert_eq!(threads.next(0, 0), Next::Run(3, 0));
}

#[test]
fn waits_end_by_time_and_say_so() {
    let mut threads = program(2);
    threads.block(0, at(8, Some(100)));
    assert_eq!(threads.next(0, 0), Next::Run(3, 0));
    threads.block(
        0,
        Wait {
            futex: None,
            deadline: Some(50),
            late: 0,
            broken: BROKEN,
        },
    );
    assert_eq!(threads.next(0, 49), Next::Idle(Some(50)));
    assert!(threads.others_may_run(0));
    assert_eq!(threads.next(0, 50), Next::Run(3, 0), "as the wait said");
    threads.exit(0);
    assert_eq!(threads.next(0, 99), Next::Idle(Some(100)));
    assert_eq!(threads.next(0, 100), Next::Run(2, LATE));
    assert!(!threads.others_may_run(0));
    assert_eq!(threads.waiting(), 0);
    threads.exit(0);
    assert_eq!(threads.next(0, 100), Next::Ended);
}

#[test]
fn a_wake_before_the_time_takes_the_deadline_away() {
    let mut threads = program(2);
    threads.block(0, at(8, Some(100)));
    threads.next(0, 0);
    assert_eq!(threads.wake(8, u32::MAX, 1), 1);
    threads.exit(0);
    assert_eq!(threads.next(0, 200), Next::Run(2, 0));
    threads.block(0, at(8, FOREVER));
    assert_eq!(threads.next(0, 300), Next::Idle(None));
}

#[test]
fn requeued_waiters_belong_to_the_other_word_and_keep_their_order() {
    let mut threads = program(5);
    for _ in 0..4 {
        threads.block(0, at(8, Some(1000)));
        threads.next(0, 0);
    }
    assert_eq!(threads.requeue(8, 16, 1, 2), 3);
    assert_eq!(threads.wake(8, u32::MAX, 9), 1, "one stayed");
    assert_eq!(threads.wake(16, u32::MAX, 1), 1);
    assert_eq!(threads.waiting(), 1);
    assert!(threads.step_back(0));
    let order: Vec<Next> = (0..3)
        .map(|_| {
            let next = threads.next(0, 0);
            threads.exit(0);
            next
        })
        .collect();
    assert_eq!(order, [Next::Run(2, 0), Next::Run(5, 0), Next::Run(3, 0)]);
}

#[test]
fn a_word_can_be_requeued_to_itself() {
    let mut threads = program(3);
    for _ in 0..2 {
        threads.block(0, at(8, FOREVER));
        threads.next(0, 0);
    }
    assert_eq!(threads.requeue(8, 8, 0, usize::MAX), 2);
    assert_eq!(threads.wake(8, u32::MAX, 9), 2);
}

#[test]
fn there_is_a_limit_and_numbers_begin_anew_behind_the_last() {
    let limit = u32::try_from(MAX_THREADS).expect("a small number");
    let mut threads = program(limit);
    assert!(threads.is_full());
    assert_eq!(threads.spawn(0, ()), Err(Errno::EAGAIN));
    threads.exit(0);
    threads.newest = LAST_TID;
    let tid = threads.spawn(0, ()).expect("one has ended");
    assert_eq!(tid, 2 + limit);
}

#[test]
fn a_thread_has_to_share_everything() {
    const PTHREAD: u64 = 0x3d_0f00;
    let args = |flags| CloneArgs {
        flags,
        child_tid: 0x100,
        parent_tid: 0x200,
        stack: 0x3000,
        tls: 0x4000,
    };
    let made = args(PTHREAD).check().expect("what glibc asks for");
    assert_eq!(made.stack, Some(0x3000));
    assert_eq!(made.tls, Some(0x4000));
    assert_eq!(made.store_tid, [Some(0x200), None]);
    assert_eq!(made.clear_tid, Some(0x100));
    let invalid = Err(Refusal::Errno(Errno::EINVAL));
    for missing in [0x100, 0x200, 0x400, 0x800] {
        assert_eq!(args(PTHREAD & !missing).check(), invalid, "{missing:#x}");
    }
    for strange in [0x4000, 0x2000_0000, 1 << 33, 1 << 63] {
        assert_eq!(args(PTHREAD | strange).check(), invalid, "{strange:#x}");
    }
    // fork and vfork.
    for process in [17, 0x4111] {
        assert_eq!(args(process).check(), Err(Refusal::NotAThread));
    }
    let mut kernel_tls = args(PTHREAD);
    kernel_tls.tls = 1 << 63;
    assert_eq!(kernel_tls.check(), Err(Refusal::Errno(Errno::EPERM)));
}

#[test]
fn clone3_takes_a_whole_stack_and_nothing_unknown() {
    let words = [0x3d_0f00, 0, 1, 2, 0, 0x1000, 0x2000, 9];
    let args = CloneArgs::from_struct(&words).expect("what glibc asks for");
    assert_eq!((args.stack, args.tls), (0x3000, 9));
    let with = |at: usize, value: u64| {
        let mut words = [0; 12];
        words[..8].copy_from_slice(&[0x3d_0f00, 0, 1, 2, 0, 0x1000, 0x2000, 9]);
        words[at] = value;
        CloneArgs::from_struct(&words)
    };
    let invalid = Err(Refusal::Errno(Errno::EINVAL));
    for (at, value) in [(4, 17), (5, 0), (6, 0), (5, u64::MAX), (6, 1 << 62), (8, 1)] {
        assert_eq!(with(at, value), invalid, "word {at} = {value:#x}");
    }
    assert_eq!(with(11, 1), Err(Refusal::Errno(Errno::E2BIG)));
    assert_eq!(with(0, 17), Err(Refusal::NotAThread));
    assert_eq!(CloneArgs::from_struct(&words[..7]), invalid);
}

#[test]
fn wake_operations_are_those_of_futex_2() {
    let code = |operation: u32, comparison: u32, operand: u32, bound: u32| {
        WakeOp::new(operation << 28 | comparison << 24 | (operand & 0xfff) << 12 | bound & 0xfff)
    };
    let apply = |operation, operand, old| {
        code(operation, 0, operand, 0)
            .expect("it exists")
            .apply(old)
    };
    assert_eq!(apply(0, 5, 9), 5);
    assert_eq!(apply(1, 0xfff, 9), 8, "operands have a sign");
    assert_eq!(apply(2, 6, 9), 15);
    assert_eq!(apply(3, 8, 9), 1);
    assert_eq!(apply(4, 3, 9), 10);
    assert_eq!(apply(8, 4, 0), 16, "shifted");
    let holds = |comparison, old: i32| {
        code(0, comparison, 0, 0xfff)
            .expect("it exists")
            .holds(old.cast_unsigned())
    };
    let table: Vec<[bool; 3]> = (0..6)
        .map(|comparison| [-2, -1, 0].map(|old| holds(comparison, old)))
        .collect();
    assert_eq!(
        table,
        [
            [false, true, false],
            [true, false, true],
            [true, false, false],
            [true, true, false],
            [false, false, true],
            [false, true, true]
        ]
    );
    assert_eq!(code(5, 0, 0, 0), Err(Errno::ENOSYS));
    assert_eq!(code(0, 6, 0, 0), Err(Errno::ENOSYS));
}

#[test]
fn robust_words_of_a_dead_owner_say_so() {
    assert_eq!(dead_owner(7, 7), Some((1 << 30, false)));
    assert_eq!(dead_owner(1 << 31 | 7, 7), Some((3 << 30, true)));
    assert_eq!(dead_owner(1 << 31 | 8, 7), None);
    assert_eq!(dead_owner(0, 7), None);
}

#[test]
fn ready_threads_run_on_whichever_core_is_free() {
    let mut threads = Threads::new(MAIN, (), 3);
    for nr in 1..4 {
        assert_eq!(threads.spawn(0, ()), Ok(MAIN + nr));
    }
    assert!(threads.others_may_run(0));
    assert_eq!(threads.wanted(0b110), 0b110, "three are ready");
    assert_eq!(threads.next(1, 0), Next::Run(3, 0));
    assert_eq!(threads.wanted(0b100), 0b100);
    assert_eq!(threads.next(2, 0), Next::Run(4, 0));
    assert_eq!(threads.wanted(0), 0);
    assert_eq!(threads.running(0), Some(MAIN));
    threads.block(1, at(8, FOREVER));
    assert_eq!(threads.next(1, 0), Next::Run(5, 0));
    threads.exit(1);
    assert_eq!(threads.next(1, 0), Next::Idle(None));
    assert!(threads.others_may_run(0), "on core 2");
    threads.exit(2);
    assert!(!threads.others_may_run(0));
    assert_eq!(threads.wake(8, u32::MAX, 1), 1);
    assert_eq!(
        threads.next(2, 0),
        Next::Run(3, 0),
        "not where it was before"
    );
}

#[test]
fn a_thread_runs_only_where_it_may() {
    let mut threads = Threads::new(MAIN, (), 2);
    threads.spawn(0, ()).expect("room");
    threads.allow(3, 0b01);
    assert_eq!(threads.wanted(0b10), 0);
    assert_eq!(threads.next(1, 0), Next::Idle(None));
    assert!(threads.step_back(0));
    assert_eq!(threads.next(1, 0), Next::Run(MAIN, 0));
    assert_eq!(threads.next(0, 0), Next::Run(3, 0));
    assert!(!threads.move_away(0));
    threads.allow(3, 0b10);
    assert!(threads.move_away(0));
    assert_eq!(threads.next(0, 0), Next::Idle(None));
    assert_eq!(threads.wanted(0b01), 0);
    assert!(threads.step_back(1));
    assert_eq!(threads.next(1, 0), Next::Run(3, 0));
    let made = threads.spawn(1, ()).expect("room");
    assert_eq!(threads.allowed(made), Some(0b10), "as its maker");
}

/// What a program may do next.
#[derive(Clone, Debug)]
enum Step {
    Spawn,
    Exit,
    Yield,
    Wait {
        word: u64,
        mask: u32,
        time: Option<u64>,
    },
    Sleep(u64),
    Wake {
        word: u64,
        mask: u32,
        max: usize,
    },
    Requeue {
        from: u64,
        to: u64,
        wake: usize,
        most: usize,
    },
    Interrupt(Tid),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let word = 0..3u64;
    let mask = 1..4u32;
    prop_oneof![
        Just(Step::Spawn),
        Just(Step::Exit),
        Just(Step::Yield),
        (word.clone(), mask.clone(), prop::option::of(0..20u64))
            .prop_map(|(word, mask, time)| Step::Wait { word, mask, time }),
        (0..20u64).prop_map(Step::Sleep),
        (word.clone(), mask, 0..4usize).prop_map(|(word, mask, max)| Step::Wake {
            word,
            mask,
            max
        }),
        (word.clone(), word, 0..3usize, 0..3usize).prop_map(|(from, to, wake, most)| {
            Step::Requeue {
                from,
                to,
                wake,
                most,
            }
        }),
        (MAIN..8).prop_map(Step::Interrupt),
        (0..10u64).prop_map(Step::Pass),
    ]
}

/// The model: one list of all waits in their order, one of the ready.
#[derive(Debug)]
struct Model {
    ready: Vec<(Tid, u64)>,
    waits: Vec<(Tid, Wait)>,
}

impl Model {
    fn wake(&mut self, word: u64, mask: u32, max: usize) -> usize {
        let mut woken = 0;
        let mut left = Vec::new();
        for (tid, wait) in self.waits.drain(..) {
            let meets = wait
                .futex
                .is_some_and(|(address, bits)| address == word && bits & mask != 0);
            if meets && woken < max {
                self.ready.push((tid, 0));
                woken += 1;
            } else {
                left.push((tid, wait));
            }
        }
        self.waits = left;
        woken
    }

    fn interrupt(&mut self, tid: Tid) -> bool {
        let Some(at) = self.waits.iter().position(|wait| wait.0 == tid) else {
            return false;
        };
        self.waits.remove(at);
        self.ready.push((tid, BROKEN));
        true
    }

    fn requeue(&mut self, from: u64, to: u64, wake: usize, most: usize) -> usize {
        let woken = self.wake(from, u32::MAX, wake);
        let (mut stay, mut moved) = (Vec::new(), Vec::new());
        for (tid, mut wait) in self.waits.drain(..) {
            match wait.futex.as_mut() {
                Some((address, _)) if *address == from && moved.len() < most => {
                    *address = to;
                    moved.push((tid, wait));
                }
                _ => stay.push((tid, wait)),
            }
        }
        let count = moved.len();
        stay.append(&mut moved);
        self.waits = stay;
        woken + count
    }

    fn expire(&mut self, now: u64) {
        let mut due: Vec<(u64, Tid, u64)> = Vec::new();
        self.waits.retain(|(tid, wait)| match wait.deadline {
            Some(deadline) if deadline <= now => {
                due.push((deadline, *tid, wait.late));
                false
            }
            _ => true,
        });
        due.sort_unstable();
        self.ready
            .extend(due.into_iter().map(|(_, tid, late)| (tid, late)));
    }
}

#[test]
fn signals_end_waits_of_every_kind_once() {
    let mut threads = Threads::new(MAIN, (), 1);
    let [sleeper, waiter] = [(); 2].map(|()| threads.spawn(0, ()).unwrap());
    threads.block(
        0,
        Wait {
            futex: None,
            deadline: Some(50),
            late: 0,
            broken: BROKEN,
        },
    );
    assert_eq!(threads.next(0, 0), Next::Run(sleeper, 0));
    threads.block(0, at(8, Some(60)));
    assert_eq!(threads.next(0, 0), Next::Run(waiter, 0));
    assert!(!threads.interrupt(waiter), "it runs");
    assert!(!threads.interrupt(99), "it is not there");
    assert!(threads.interrupt(sleeper) && !threads.interrupt(sleeper));
    assert!(threads.complete(MAIN, 7) && !threads.is_waiting(MAIN));
    assert_eq!((threads.waiting(), threads.wake(8, u32::MAX, 9)), (0, 0));
    threads.exit(0);
    assert_eq!(threads.next(0, 99), Next::Run(sleeper, BROKEN));
    threads.exit(0);
    assert_eq!(threads.next(0, 99), Next::Run(MAIN, 7));
}

proptest! {
    #[test]
    fn every_thread_is_where_the_model_has_it(steps in prop::collection::vec(step(), 1..120)) {
        let mut threads = Threads::new(MAIN, (), 1);
        let mut model = Model { ready: vec![(MAIN, 0)], waits: Vec::new() };
        let mut now = 0;
        for step in steps {
            model.expire(now);
            let next = threads.next(0, now);
            let runs = match next {
                Next::Run(tid, answer) => {
                    prop_assert_eq!((tid, answer), model.ready.remove(0));
                    true
                }
                Next::Idle(deadline) => {
                    prop_assert!(model.ready.is_empty() && !model.waits.is_empty());
                    prop_assert_eq!(deadline, model.waits.iter().filter_map(|w| w.1.deadline).min());
                    now = deadline.unwrap_or(now).max(now);
                    false
                }
                Next::Ended => break,
            };
            prop_assert_eq!(runs, threads.running(0).is_some());
            let Next::Run(tid, _) = next else {
                // Somebody outside does this, so that no program gets stuck.
                prop_assert_eq!(threads.wake(0, u32::MAX, 9), model.wake(0, u32::MAX, 9));
                continue;
            };
            let goes_on = apply(&step, tid, &mut threads, &mut model, &mut now)?;
            if goes_on {
                model.ready.insert(0, (tid, answer_of(&threads, tid)));
            }
            let places = model.ready.len() + model.waits.len();
            prop_assert_eq!(threads.count(), places);
            let at_futex = model.waits.iter().filter(|w| w.1.futex.is_some()).count();
            prop_assert_eq!(threads.waiting(), at_futex);
        }
    }
}

/// A thread that is not taken off keeps its last answer.
fn answer_of(threads: &Threads<()>, tid: Tid) -> u64 {
    threads.all.get(&tid).map_or(0, |thread| thread.answer)
}

/// Does `step` on both; whether the running thread still runs.
fn apply(
    step: &Step,
    tid: Tid,
    threads: &mut Threads<()>,
    model: &mut Model,
    now: &mut u64,
) -> Result<bool, TestCaseError> {
    let mut waits = |model: &mut Model, wait: Wait| {
        threads.block(0, wait);
        model.waits.push((tid, wait));
    };
    match *step {
        Step::Spawn => {
            if let Ok(tid) = threads.spawn(0, ()) {
                model.ready.push((tid, 0));
            }
        }
        Step::Exit => {
            threads.exit(0);
            return Ok(false);
        }
        Step::Yield => {
            let moved = threads.step_back(0);
            prop_assert_eq!(moved, !model.ready.is_empty());
            if moved {
                model.ready.push((tid, 0));
                return Ok(false);
            }
        }
        Step::Wait { word, mask, time } => {
            let deadline = time.map(|time| *now + time);
            let futex = Some((word, mask));
            waits(
                model,
                Wait {
                    futex,
                    deadline,
                    late: LATE,
                    broken: BROKEN,
                },
            );
            return Ok(false);
        }
        Step::Sleep(time) => {
            let deadline = Some(*now + time);
            waits(
                model,
                Wait {
                    futex: None,
                    deadline,
                    late: 0,
                    broken: BROKEN,
                },
            );
            return Ok(false);
        }
        Step::Wake { word, mask, max } => {
            prop_assert_eq!(threads.wake(word, mask, max), model.wake(word, mask, max));
        }
        Step::Requeue {
            from,
            to,
            wake,
            most,
        } => {
            let both = (
                threads.requeue(from, to, wake, most),
                model.requeue(from, to, wake, most),
            );
            prop_assert_eq!(both.0, both.1);
        }
        Step::Interrupt(tid) => {
            prop_assert_eq!(threads.interrupt(tid), model.interrupt(tid));
        }
        Step::Pass(time) => *now += time,
    }
    Ok(true)
}

#[test]
fn a_core_that_goes_leaves_its_thread_to_the_others() {
    let mut threads = Threads::new(1, (), 3);
    let second = threads.spawn(0, ()).unwrap();
    assert_eq!(threads.next(2, 0), Next::Run(second, 0));
    threads.use_cores(0b011);
    threads.step_off(2, 77);
    assert_eq!(threads.next(2, 0), Next::Idle(None));
    assert_eq!(threads.wanted(0b110), 0b010);
    assert_eq!(threads.next(1, 0), Next::Run(second, 77));
    threads.use_cores(0b111);
    let third = threads.spawn(0, ()).unwrap();
    assert_eq!(threads.next(2, 0), Next::Run(third, 0));
}

#[test]
fn a_thread_that_could_run_nowhere_is_named() {
    let mut threads = Threads::new(1, (), 4);
    let second = threads.spawn(0, ()).unwrap();
    assert_eq!(threads.stranded(0b0001), None);
    threads.allow(second, 0b1100);
    assert_eq!(threads.stranded(0b0111), None);
    assert_eq!(threads.stranded(0b0011), Some(second));
}
