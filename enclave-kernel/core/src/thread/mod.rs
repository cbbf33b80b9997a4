//! The threads of a program on its cores: who runs where, who may, who waits for
//! what.
//!
//! Called by the kernel's thread calls. A thread runs until it blocks, yields
//! or ends; nothing is taken away from it, so there is no tick and no time
//! slice. Queues are first come, first served, by whichever core is free that
//! the thread may run on. Promises: a thread is in exactly
//! one of four places (running, ready, waiting, gone); each wait ends at most
//! once; nobody is woken twice. What a thread's machine state is, is the
//! kernel's (`C`), and so is the clock: times come in as arguments.

mod clone;
mod futex;
#[cfg(test)]
mod tests;

pub use clone::{CloneArgs, Refusal, Request};
pub use futex::{WakeOp, dead_owner};

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec;
use alloc::vec::Vec;

use crate::errno::Errno;

/// A thread's number, as `gettid` tells it. Linux's robust futexes have 30 bits
/// for it.
pub type Tid = u32;

/// A set of cores, a bit for each.
pub type Cores = u64;

/// Most threads of a program.
pub const MAX_THREADS: usize = 512;
/// Numbers begin anew after this one, as under Linux's usual `pid_max`.
const LAST_TID: Tid = 4_194_303;

/// What a thread waits for: a wake-up at a futex word, a time, or whichever
/// comes first. Neither: for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Address of the word, and the bits of which a waker has to name one.
    pub futex: Option<(u64, u32)>,
    /// Monotonic nanoseconds.
    pub deadline: Option<u64>,
    /// What the call answers when the deadline has passed.
    pub late: u64,
    /// What it answers when a signal ends the wait.
    pub broken: u64,
}

/// Who runs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This thread, whose system call answers so.
    Run(Tid, u64),
    /// Nobody before this time (monotonic nanoseconds), or, without one, before
    /// somebody else changes something.
    Idle(Option<u64>),
    /// There is no thread.
    Ended,
}

/// One thread.
#[derive(Debug)]
struct Thread<C> {
    context: C,
    wait: Option<Wait>,
    /// What its system call answers when it runs again.
    answer: u64,
    /// Where it may run.
    allowed: Cores,
}

/// All threads of a program.
#[derive(Debug)]
pub struct Threads<C> {
    all: BTreeMap<Tid, Thread<C>>,
    /// Who runs on each core.
    running: Vec<Option<Tid>>,
    ready: VecDeque<Tid>,
    /// Waiters of each futex word that has any, oldest first.
    queues: BTreeMap<u64, VecDeque<Tid>>,
    /// Waiters with a deadline.
    deadlines: BTreeSet<(u64, Tid)>,
    newest: Tid,
    /// The cores that there are now.
    online: Cores,
}

impl<C> Threads<C> {
    /// A program on `cores` cores, 64 at most, whose first thread is `main`,
    /// running on core 0.
    #[must_use]
    pub fn new(main: Tid, context: C, cores: usize) -> Self {
        let thread = Thread {
            context,
            wait: None,
            answer: 0,
            allowed: Cores::MAX,
        };
        let mut running = vec![None; cores.max(1)];
        if let Some(first) = running.first_mut() {
            *first = Some(main);
        }
        Self {
            all: BTreeMap::from([(main, thread)]),
            running,
            ready: VecDeque::new(),
            queues: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            newest: main,
            online: Cores::MAX,
        }
    }

    /// The same with a first thread that is ready and runs nowhere yet.
    #[must_use]
    pub fn ready(main: Tid, context: C, cores: usize) -> Self {
        let mut this = Self::new(main, context, cores);
        let first = this.take_running(0);
        this.ready.extend(first);
        this
    }

    /// Whether a thread is ready at the time `now`.
    pub fn has_ready(&mut self, now: u64) -> bool {
        self.expire(now);
        !self.ready.is_empty()
    }

    /// Whether a thread runs on any core.
    #[must_use]
    pub fn is_on_core(&self) -> bool {
        self.running.iter().any(Option::is_some)
    }

    /// The newest number; [`Threads::follow`] has numbers go on behind another one.
    #[must_use]
    pub fn newest(&self) -> Tid {
        self.newest
    }

    /// Has numbers go on behind `newest`: several programs share them.
    pub fn follow(&mut self, newest: Tid) {
        self.newest = newest;
    }

    /// Number of threads.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Whether [`Threads::spawn`] would refuse.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.all.len() >= MAX_THREADS
    }

    /// Whether there is a thread `tid`.
    #[must_use]
    pub fn has(&self, tid: Tid) -> bool {
        self.all.contains_key(&tid)
    }

    /// The thread that runs on `core`.
    #[must_use]
    pub fn running(&self, core: usize) -> Option<Tid> {
        self.running.get(core).copied().flatten()
    }

    /// The core that thread `tid` runs on.
    #[must_use]
    pub fn core_of(&self, tid: Tid) -> Option<usize> {
        self.running
            .iter()
            .position(|&running| running == Some(tid))
    }

    /// Takes the running thread of `core` off it.
    fn take_running(&mut self, core: usize) -> Option<Tid> {
        self.running.get_mut(core)?.take()
    }

    /// Where thread `tid` may run; `None` if it is not there.
    #[must_use]
    pub fn allowed(&self, tid: Tid) -> Option<Cores> {
        self.all.get(&tid).map(|thread| thread.allowed)
    }

    /// Says where thread `tid` may run. A running one stays where it is until it
    /// waits, yields or ends.
    pub fn allow(&mut self, tid: Tid, cores: Cores) {
        if let Some(thread) = self.all.get_mut(&tid) {
            thread.allowed = cores;
        }
    }

    /// Says which cores there are: no thread begins to run on others.
    pub fn use_cores(&mut self, online: Cores) {
        self.online = online;
    }

    /// A thread that could run nowhere if there were only the cores `online`.
    #[must_use]
    pub fn stranded(&self, online: Cores) -> Option<Tid> {
        let mut all = self.all.iter();
        all.find_map(|(&tid, thread)| (thread.allowed & online == 0).then_some(tid))
    }

    fn may_run(&self, tid: Tid, core: usize) -> bool {
        self.allowed(tid)
            .is_some_and(|cores| (cores & self.online) >> core & 1 == 1)
    }

    /// The machine state of thread `tid`.
    pub fn context(&mut self, tid: Tid) -> Option<&mut C> {
        self.all.get_mut(&tid).map(|thread| &mut thread.context)
    }

    /// The machine states of all threads, to give back what they hold.
    pub fn contexts(&mut self) -> impl Iterator<Item = &mut C> {
        self.all.values_mut().map(|thread| &mut thread.context)
    }

    /// Adds a thread, ready behind all others; its first answer is 0. It may run
    /// where its maker may, who runs on `core`.
    ///
    /// # Errors
    /// `EAGAIN` when there are [`MAX_THREADS`].
    pub fn spawn(&mut self, core: usize, context: C) -> Result<Tid, Errno> {
        if self.is_full() {
            return Err(Errno::EAGAIN);
        }
        let maker = self.running(core).and_then(|maker| self.allowed(maker));
        let first = self.all.keys().next().copied().unwrap_or(0);
        let mut tid = self.newest;
        // Ends: there are more numbers than threads.
        loop {
            tid = if tid >= LAST_TID { first } else { tid + 1 };
            if !self.all.contains_key(&tid) {
                break;
            }
        }
        self.newest = tid;
        let thread = Thread {
            context,
            wait: None,
            answer: 0,
            allowed: maker.unwrap_or(Cores::MAX),
        };
        self.all.insert(tid, thread);
        self.ready.push_back(tid);
        Ok(tid)
    }

    /// Takes the running thread of `core` away and returns its state.
    pub fn exit(&mut self, core: usize) -> Option<C> {
        let tid = self.take_running(core)?;
        self.all.remove(&tid).map(|thread| thread.context)
    }

    /// Lets the running thread of `core` wait.
    pub fn block(&mut self, core: usize, wait: Wait) {
        let Some(tid) = self.take_running(core) else {
            return;
        };
        if let Some((address, _)) = wait.futex {
            self.queues.entry(address).or_default().push_back(tid);
        }
        if let Some(deadline) = wait.deadline {
            self.deadlines.insert((deadline, tid));
        }
        if let Some(thread) = self.all.get_mut(&tid) {
            thread.wait = Some(wait);
        }
    }

    /// Puts the running thread of `core` behind those that are ready; `false`
    /// when none of them may run there and it goes on.
    pub fn step_back(&mut self, core: usize) -> bool {
        if self.first_for(core).is_none() {
            return false;
        }
        self.make_way(core);
        true
    }

    /// The same, even if none is.
    pub fn step_aside(&mut self, core: usize) {
        self.make_way(core);
    }

    /// Takes the running thread of `core`, which goes, off it; first of those that
    /// are ready, it goes on elsewhere with `answer`, as if nothing had happened.
    pub fn step_off(&mut self, core: usize, answer: u64) {
        if let Some(tid) = self.take_running(core) {
            if let Some(thread) = self.all.get_mut(&tid) {
                thread.answer = answer;
            }
            self.ready.push_front(tid);
        }
    }

    /// Puts the running thread of `core` behind those that are ready where it may
    /// not run there any more, whoever else may.
    pub fn move_away(&mut self, core: usize) -> bool {
        let Some(tid) = self.running(core) else {
            return false;
        };
        if self.may_run(tid, core) {
            return false;
        }
        self.make_way(core);
        true
    }

    fn make_way(&mut self, core: usize) {
        if let Some(tid) = self.take_running(core) {
            if let Some(thread) = self.all.get_mut(&tid) {
                thread.answer = 0;
            }
            self.ready.push_back(tid);
        }
    }

    /// Where in the queue the next thread for `core` is.
    fn first_for(&self, core: usize) -> Option<usize> {
        self.ready.iter().position(|&tid| self.may_run(tid, core))
    }

    /// Who runs on `core` at the time `now`: the running thread if there still is
    /// one, else the one that has been ready longest of those that may.
    pub fn next(&mut self, core: usize, now: u64) -> Next {
        self.expire(now);
        let tid = self.running(core).or_else(|| {
            let at = self.first_for(core)?;
            self.ready.remove(at)
        });
        if let Some(running) = self.running.get_mut(core) {
            *running = tid;
        }
        match tid.and_then(|tid| self.all.get(&tid).map(|thread| (tid, thread.answer))) {
            Some((tid, answer)) => Next::Run(tid, answer),
            None if self.all.is_empty() => Next::Ended,
            None => Next::Idle(self.deadline()),
        }
    }

    /// Ends the wait of thread `tid`, if it waits, as it said of signals; whether
    /// it did.
    pub fn interrupt(&mut self, tid: Tid) -> bool {
        let Some(wait) = self.wait_of(tid) else {
            return false;
        };
        self.finish_wait(tid, wait, wait.broken);
        true
    }

    /// Ends the wait of thread `tid`, if it waits, with an answer of its own;
    /// whether it did.
    pub fn complete(&mut self, tid: Tid, answer: u64) -> bool {
        let Some(wait) = self.wait_of(tid) else {
            return false;
        };
        self.finish_wait(tid, wait, answer);
        true
    }

    fn wait_of(&self, tid: Tid) -> Option<Wait> {
        self.all.get(&tid).and_then(|thread| thread.wait)
    }

    fn finish_wait(&mut self, tid: Tid, wait: Wait, answer: u64) {
        if let Some((address, _)) = wait.futex {
            self.leave_queue(address, tid);
        }
        self.end_wait(tid, answer);
    }

    /// Whether thread `tid` waits.
    #[must_use]
    pub fn is_waiting(&self, tid: Tid) -> bool {
        self.wait_of(tid).is_some()
    }

    /// The numbers of all threads, in order.
    pub fn numbers(&self) -> impl Iterator<Item = Tid> {
        self.all.keys().copied()
    }

    /// When the next wait ends by itself.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Which of the sleeping cores the ready threads need.
    #[must_use]
    pub fn wanted(&self, sleeping: Cores) -> Cores {
        let mut left = sleeping;
        for &tid in &self.ready {
            if left == 0 {
                break;
            }
            let open = left & self.allowed(tid).unwrap_or(0);
            // The lowest of them.
            left &= !(open & open.wrapping_neg());
        }
        sleeping & !left
    }

    /// Whether somebody else may run before the running thread of `core` does
    /// anything for it: somebody is ready, runs on another core, or waits for a
    /// time.
    #[must_use]
    pub fn others_may_run(&self, core: usize) -> bool {
        let elsewhere = || {
            (0..)
                .zip(&self.running)
                .any(|(n, tid)| n != core && tid.is_some())
        };
        !self.ready.is_empty() || !self.deadlines.is_empty() || elsewhere()
    }

    /// Ends the waits whose time has come.
    pub fn expire(&mut self, now: u64) {
        while let Some(&(deadline, tid)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            let wait = self.all.get(&tid).and_then(|thread| thread.wait);
            if let Some((address, _)) = wait.and_then(|wait| wait.futex) {
                self.leave_queue(address, tid);
            }
            self.end_wait(tid, wait.map_or(0, |wait| wait.late));
        }
    }

    fn leave_queue(&mut self, address: u64, tid: Tid) {
        if let Some(queue) = self.queues.get_mut(&address) {
            queue.retain(|&waiter| waiter != tid);
            if queue.is_empty() {
                self.queues.remove(&address);
            }
        }
    }

    /// Makes a waiting thread ready that is in no futex queue any more.
    fn end_wait(&mut self, tid: Tid, answer: u64) {
        let Some(thread) = self.all.get_mut(&tid) else {
            return;
        };
        if let Some(deadline) = thread.wait.take().and_then(|wait| wait.deadline) {
            self.deadlines.remove(&(deadline, tid));
        }
        thread.answer = answer;
        self.ready.push_back(tid);
    }
}
