//! Bells: who gets one, what the exporter's kernel is told, and when.

use super::*;
use enclave_abi::lease::bells::{ANY, CHANGED, QUIET, RING};
use enclave_abi::lease::retain_and_flags;

impl World {
    /// The flags that the kernel sees for arena slot 0.
    fn flags(&self, enclave: EnclaveId) -> u32 {
        let words = self.memory.words.borrow();
        let word = words.get(&(enclave, 0)).map_or(0, |words| words[SLOTS]);
        retain_and_flags(word) & ANY
    }

    fn was_told(&mut self, apid: ApId) -> bool {
        let target = Target::Access(apid);
        let effects = core::mem::take(&mut self.effects);
        effects.contains(&Effect::Notify { target, count: 1 })
    }
}

#[test]
fn a_bell_rings_once_the_exporter_has_fetched_it_and_until_it_knows_of_its_end() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "q");
    let apid = world.attach(READER, segid, Policy::Latest);
    assert_eq!(world.flags(enclave), 0);
    assert_eq!(
        world.ask(
            READER,
            Request::Bell {
                apid,
                shared: false
            }
        ),
        Reply::Bell
    );
    assert_eq!(world.flags(enclave), CHANGED);
    // Not fetched: the broker tells.
    world.effects.clear();
    world.act(|broker, env| broker.doorbell(segid, 1, env));
    assert!(world.was_told(apid));
    let fetched = world.ask(EXPORTER, Request::Bells { segid });
    assert_eq!(fetched, Reply::Bells { all: 1, fresh: 1 });
    assert!(
        world.was_told(apid),
        "what was published before may be missed"
    );
    assert_eq!(world.flags(enclave), RING | QUIET);
    world.act(|broker, env| broker.doorbell(segid, 1, env));
    assert!(!world.was_told(apid));
    // Somebody who waits for the broker.
    let other = world.attach(READER, segid, Policy::Latest);
    assert_eq!(world.flags(enclave), RING);
    assert_eq!(
        world.ask(READER, Request::Release { apid: other }),
        Reply::Ok
    );
    assert_eq!(world.flags(enclave), RING | QUIET);
    assert_eq!(world.ask(READER, Request::Detach { apid }), Reply::Ok);
    assert_eq!(world.flags(enclave), CHANGED);
    // Its number is not used again before.
    let next = world.attach(READER, segid, Policy::Every);
    assert_eq!(
        world.ask(
            READER,
            Request::Bell {
                apid: next,
                shared: false
            }
        ),
        Reply::Bell
    );
    let fetched = world.ask(EXPORTER, Request::Bells { segid });
    assert_eq!(fetched, Reply::Bells { all: 2, fresh: 2 });
    // Who wants each generation needs the broker to lease it.
    assert_eq!(world.flags(enclave), RING);
    let fetched = world.ask(EXPORTER, Request::Bells { segid });
    assert_eq!(fetched, Reply::Bells { all: 2, fresh: 0 });
}

#[test]
fn bells_are_bounded_and_for_the_owner_and_the_exporter_only() {
    let mut world = World::peopled();
    world.enclave();
    let segid = world.arena(0, "q");
    let first = world.attach(READER, segid, Policy::Latest);
    assert_eq!(
        world.ask(
            READER,
            Request::Bell {
                apid: first,
                shared: false
            }
        ),
        Reply::Bell
    );
    assert_eq!(
        world.errno(
            READER,
            Request::Bell {
                apid: first,
                shared: false
            }
        ),
        Errno::EXIST
    );
    assert_eq!(
        world.errno(
            OTHER,
            Request::Bell {
                apid: first,
                shared: false
            }
        ),
        Errno::BADF
    );
    assert_eq!(world.errno(READER, Request::Bells { segid }), Errno::PERM);
    for _ in 1..16 {
        let apid = world.attach(READER, segid, Policy::Latest);
        assert_eq!(
            world.ask(
                READER,
                Request::Bell {
                    apid,
                    shared: false
                }
            ),
            Reply::Bell
        );
    }
    let apid = world.attach(READER, segid, Policy::Latest);
    assert_eq!(
        world.errno(
            READER,
            Request::Bell {
                apid,
                shared: false
            }
        ),
        Errno::NOSPC
    );
    let fetched = world.ask(EXPORTER, Request::Bells { segid });
    let all = u16::MAX;
    assert_eq!(fetched, Reply::Bells { all, fresh: all });
    world.act(|broker, env| broker.disconnected(READER, env));
    let fetched = world.ask(EXPORTER, Request::Bells { segid });
    assert_eq!(fetched, Reply::Bells { all: 0, fresh: 0 });
}

#[test]
fn readers_on_linux_share_one_bell_until_the_last_of_them_has_left() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "q");
    let apids = [(); 3].map(|()| world.attach(READER, segid, Policy::Latest));
    let [first, second, third] = apids;
    let shared = |apid| Request::Bell { apid, shared: true };
    assert_eq!(world.ask(READER, shared(first)), Reply::Bell);
    assert_eq!(world.ask(READER, shared(second)), Reply::Bell);
    assert_eq!(world.flags(enclave), CHANGED);
    assert_eq!(world.errno(READER, shared(first)), Errno::EXIST);
    let fetched = world.ask(EXPORTER, Request::Bells { segid });
    assert_eq!(fetched, Reply::Bells { all: 1, fresh: 1 });
    let told = |effects: &[Effect], apid| {
        let target = Target::Access(apid);
        effects.contains(&Effect::Notify { target, count: 1 })
    };
    let effects = core::mem::take(&mut world.effects);
    assert_eq!(
        apids.map(|apid| told(&effects, apid)),
        [true, true, false],
        "what was published before may be missed"
    );
    assert_eq!(world.flags(enclave), RING);
    world.act(|broker, env| broker.doorbell(segid, 1, env));
    let effects = core::mem::take(&mut world.effects);
    assert_eq!(apids.map(|apid| told(&effects, apid)), [false, false, true]);
    // It rings already: the exporter need not ask again.
    assert_eq!(world.ask(READER, shared(third)), Reply::Bell);
    assert_eq!(world.flags(enclave), RING | QUIET);
    world.ask(READER, Request::Detach { apid: first });
    world.ask(READER, Request::Release { apid: second });
    assert_eq!(world.flags(enclave), RING | QUIET);
    world.ask(READER, Request::Release { apid: third });
    assert_eq!(world.flags(enclave), CHANGED);
    let next = world.attach(READER, segid, Policy::Latest);
    assert_eq!(world.ask(READER, shared(next)), Reply::Bell);
    let fetched = world.ask(EXPORTER, Request::Bells { segid });
    assert_eq!(fetched, Reply::Bells { all: 2, fresh: 2 });
}
