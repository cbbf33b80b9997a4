//! The state machine with fake memory: each promise of [`super`], then random
//! sequences of everything.

use super::*;
use crate::wire::{
    Access, ArenaMake, EndReason, Hugetlb, LeaseReply, NO_GROUP, Policy, SegmentInfo, SegmentKind,
    SegmentMake, SegmentState, Target, WAIT_END, Want,
};
use enclave_abi::arena::{GENERATION_RECORDS, GenerationRecord, NAME_BYTES, name_field};
use enclave_abi::lease::{SLOTS, Slot, retain_count, retain_of, retain_readers};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// Lease pages and headers of a pretended kernel.
#[derive(Default)]
struct Fake {
    words: RefCell<BTreeMap<(EnclaveId, u32), [u64; SLOTS + 1]>>,
    latest: RefCell<BTreeMap<SegId, u64>>,
    /// Of every arena.
    policy: Cell<u32>,
    /// Words to change just before the next exchange: a lost race.
    race: RefCell<Option<(usize, u64)>>,
    /// Objects that did not outlive a broker.
    lost: RefCell<BTreeSet<SegId>>,
}

impl LeaseMemory for Fake {
    fn has_object(&self, segid: SegId, _is_sealed: bool) -> bool {
        !self.lost.borrow().contains(&segid)
    }

    fn words(&self, enclave: EnclaveId, slot: u32) -> [u64; SLOTS] {
        let words = self.words.borrow();
        let row = words.get(&(enclave, slot)).copied().unwrap_or_default();
        core::array::from_fn(|index| row[index])
    }

    fn exchange(&self, enclave: EnclaveId, slot: u32, index: usize, old: u64, new: u64) -> bool {
        let mut words = self.words.borrow_mut();
        let row = words.entry((enclave, slot)).or_default();
        if let Some((at, value)) = self.race.take() {
            row[at] = value;
        }
        let is_old = row[index] == old;
        if is_old {
            row[index] = new;
        }
        is_old
    }

    fn clear(&self, enclave: EnclaveId, slot: u32) {
        let mut words = self.words.borrow_mut();
        words.entry((enclave, slot)).or_default()[..SLOTS].fill(0);
    }

    fn set_retain(&self, enclave: EnclaveId, slot: u32, count: u32, readers: u32) {
        let mut words = self.words.borrow_mut();
        words.entry((enclave, slot)).or_default()[SLOTS] = retain_of(count, readers);
    }

    fn counters(&self, segid: SegId) -> Counters {
        let latest = self.latest.borrow();
        Counters {
            latest_generation: latest.get(&segid).copied().unwrap_or(0),
            policy: self.policy.get(),
            ..Counters::default()
        }
    }

    fn record(&self, segid: SegId, generation: u64) -> Option<GenerationRecord> {
        let latest = self.latest.borrow().get(&segid).copied().unwrap_or(0);
        // As the exporter's kernel: each is written over after so many more.
        let is_there = latest < generation + GENERATION_RECORDS as u64;
        is_there.then(|| GenerationRecord {
            generation,
            ..GenerationRecord::default()
        })
    }
}

impl Fake {
    fn set(&self, enclave: EnclaveId, slot: u32, index: usize, state: Slot) {
        let mut words = self.words.borrow_mut();
        words.entry((enclave, slot)).or_default()[index] = state.encode();
    }

    fn slot(&self, enclave: EnclaveId, slot: u32, index: usize) -> Slot {
        Slot::decode(self.words(enclave, slot)[index])
    }

    /// What the kernel is told to keep, and how many readers there are.
    fn retain(&self, enclave: EnclaveId, slot: u32) -> (u32, u32) {
        let word = self.words.borrow()[&(enclave, slot)][SLOTS];
        (retain_count(word), retain_readers(word))
    }
}

/// A broker, its memory, and a server that carries out everything at once.
struct World {
    broker: Broker,
    memory: Fake,
    now_ms: u64,
    /// What effects fail with, if they do.
    fails: Option<Errno>,
    /// Whose eventfds there are.
    eventfds: BTreeSet<Target>,
    replies: Vec<(PeerId, u32, Reply)>,
    effects: Vec<Effect>,
    /// What the broker has recorded, event by event.
    journal: Vec<Vec<u8>>,
}

/// Of an arena as [`make`] describes it: control area and four banks.
const OBJECT_BYTES: u64 = 5 * (2 << 20);
const OWNER: u32 = 1000;
const EXPORTER: PeerId = PeerId(1);
const READER: PeerId = PeerId(2);
const OTHER: PeerId = PeerId(3);

impl World {
    fn new() -> Self {
        let settings = Settings {
            owner_uid: OWNER,
            pid: 42,
            keeper: 0,
            linger_ms: 2000,
            rings_per_second: 1000,
            retention: Retention {
                for_ms: 60_000,
                bytes_per_user: 3 * OBJECT_BYTES,
            },
        };
        Self {
            broker: Broker::new(settings, 0),
            memory: Fake::default(),
            now_ms: 0,
            fails: None,
            eventfds: BTreeSet::new(),
            replies: Vec::new(),
            effects: Vec::new(),
            journal: Vec::new(),
        }
    }

    /// With an exporter, a reader of the same user and another user's.
    fn peopled() -> Self {
        let mut world = Self::new();
        world.connect(EXPORTER, OWNER, Role::Exporter);
        world.connect(READER, OWNER, Role::Consumer);
        world.connect(OTHER, 2000, Role::Consumer);
        world
    }

    fn act(&mut self, act: impl FnOnce(&mut Broker, Env<'_>)) {
        let env = Env {
            memory: &self.memory,
            now_ms: self.now_ms,
        };
        act(&mut self.broker, env);
        let mut effects = VecDeque::from(self.broker.take_effects());
        while let Some(effect) = effects.pop_front() {
            let result = self.fails.map_or(Ok(4096), Err);
            match effect {
                Effect::MakeNotify { target, .. } if result.is_ok() => {
                    assert!(self.eventfds.insert(target), "one eventfd each");
                }
                Effect::ClearSlot(enclave, slot) => self.memory.clear(enclave, slot),
                Effect::DropNotify(target) => {
                    self.eventfds.remove(&target);
                }
                _ => {}
            }
            match effect.clone() {
                Effect::Send {
                    peer, seq, reply, ..
                } => self.replies.push((peer, seq, reply)),
                Effect::MakeLeasePage { ticket, .. }
                | Effect::MakeArena { ticket, .. }
                | Effect::SealArena { ticket, .. }
                | Effect::MakeSegment { ticket, .. }
                | Effect::SealSegment { ticket, .. }
                | Effect::MakeBell { ticket, .. }
                | Effect::MakeSignalPage { ticket, .. }
                | Effect::MakeNotify { ticket, .. } => {
                    self.broker.finish(ticket, result, env);
                    effects.extend(self.broker.take_effects());
                }
                _ => {}
            }
            self.effects.push(effect);
        }
        self.journal.push(self.broker.changes());
    }

    /// The broker decides, and is gone before it can record that or do anything
    /// about it; another one takes over.
    fn die_in(&mut self, act: impl FnOnce(&mut Broker, Env<'_>)) {
        let env = Env {
            memory: &self.memory,
            now_ms: self.now_ms,
        };
        act(&mut self.broker, env);
        self.broker = Broker::new(self.broker.settings, self.now_ms);
        for changes in &self.journal {
            self.broker.apply(changes).expect("its own record");
        }
        self.act(|broker, env| broker.take_over(|_| true, env));
    }

    fn connect(&mut self, peer: PeerId, uid: u32, role: Role) {
        let credentials = Credentials {
            uid,
            gid: uid,
            groups: vec![77],
        };
        self.act(|broker, _| broker.connected(peer, credentials));
        let abi_version = enclave_abi::ABI_VERSION;
        let welcome = self.ask(peer, Request::Hello { role, abi_version });
        assert!(matches!(welcome, Reply::Welcome { .. }), "{welcome:?}");
    }

    /// The reply to a request that is answered at once.
    fn ask(&mut self, peer: PeerId, request: Request) -> Reply {
        self.replies.clear();
        self.act(|broker, env| broker.handle(peer, 9, &request, env));
        match self.replies.pop() {
            Some((to, 9, reply)) if to == peer => reply,
            other => panic!("{request:?} was answered by {other:?}"),
        }
    }

    fn errno(&mut self, peer: PeerId, request: Request) -> Errno {
        match self.ask(peer, request) {
            Reply::Error { errno, .. } => Errno::from_raw_os_error(errno.cast_signed()),
            other => panic!("{request:?} was granted: {other:?}"),
        }
    }

    fn enclave(&mut self) -> EnclaveId {
        let name = field("a1");
        let page = self.ask(EXPORTER, Request::RegisterEnclave { name });
        assert_eq!(page, Reply::LeasePage);
        *self.broker.enclaves.keys().next_back().expect("an enclave")
    }

    fn arena(&mut self, slot: u32, name: &str) -> SegId {
        let reply = self.ask(EXPORTER, Request::ArenaMake(make(slot, name)));
        let Reply::Arena { segid, .. } = reply else {
            panic!("no arena: {reply:?}");
        };
        assert_eq!(self.ask(EXPORTER, Request::Mapped { segid }), Reply::Ok);
        segid
    }

    fn attach(&mut self, peer: PeerId, segid: SegId, policy: Policy) -> ApId {
        let access = Access::ReadOnly;
        let Reply::Granted { apid } = self.ask(peer, Request::Get { segid, access }) else {
            panic!("no access to {segid}");
        };
        let attached = self.ask(peer, Request::Attach { apid, policy });
        assert!(matches!(attached, Reply::Attached(_)), "{attached:?}");
        apid
    }

    fn publish(&mut self, enclave: EnclaveId, segid: SegId, index: usize, generation: u64) {
        self.memory
            .set(enclave, 0, index, Slot::Published(generation));
        self.memory.latest.borrow_mut().insert(segid, generation);
    }

    fn ring(&mut self, segid: SegId) {
        self.act(|broker, env| broker.doorbell(segid, 1, env));
    }

    fn lease(&mut self, peer: PeerId, apid: ApId, want: Want) -> LeaseReply {
        match self.ask(peer, Request::Lease { apid, want }) {
            Reply::Lease(lease) => lease,
            other => panic!("no lease: {other:?}"),
        }
    }

    /// The generation leased after `after`.
    fn leased(&mut self, peer: PeerId, apid: ApId, after: u64) -> Option<u64> {
        match self.lease(peer, apid, Want::After(after)) {
            LeaseReply::Granted { generation, record } => {
                assert_eq!(record.generation, generation);
                Some(generation)
            }
            LeaseReply::None => None,
            LeaseReply::Ended(reason) => panic!("ended: {reason}"),
        }
    }

    fn disconnect(&mut self, peer: PeerId) {
        self.act(|broker, env| broker.disconnected(peer, env));
    }

    fn notified(&self, apid: ApId) -> usize {
        let wanted = Target::Access(apid);
        let wanted = |e: &&Effect| matches!(e, Effect::Notify { target, .. } if *target == wanted);
        self.effects.iter().filter(wanted).count()
    }

    fn status(&mut self, peer: PeerId) -> Status {
        match self.ask(peer, Request::Status) {
            Reply::Status(status) => status,
            other => panic!("no status: {other:?}"),
        }
    }
}

fn field(name: &str) -> [u8; NAME_BYTES] {
    name_field(name).expect("a valid name")
}

fn make(slot: u32, name: &str) -> ArenaMake {
    ArenaMake {
        slot,
        name: name_field(name).unwrap_or([0; NAME_BYTES]),
        size_bytes: 1 << 20,
        chunk_bytes: 4096,
        nr_banks: 4,
        hugetlb: Hugetlb::Auto,
        reader_gid: u32::MAX,
        retain: 1,
    }
}

mod bells;
mod exporters;
mod plain;
mod random;
mod readers;
mod record;
mod retained;
mod store;
