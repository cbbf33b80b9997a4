//! A program's timers: when the next one is due, and what it sends.
//!
//! Called by the timer calls of the kernel and whenever the host says that the time
//! has come. Times are monotonic nanoseconds and come in as arguments. Promises: a
//! timer is due at most once per look, however many periods have passed; periods
//! whose signal could not be sent because the one before still waits are counted
//! (timer_getoverrun(2)). Who wakes the kernel is not decided here.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::errno::Errno;
use crate::signal::number::SIGALRM;
use crate::signal::{Info, code};
use crate::thread::Tid;

/// Most timers that a program makes.
pub const MAX_TIMERS: usize = 256;
/// Shortest time in which the host is asked to come back: a program that wants a
/// signal each nanosecond gets overruns.
pub const SHORTEST_NS: u64 = 50_000;
/// Largest count of overruns that is told (`DELAYTIMER_MAX`).
const MOST_OVERRUNS: u64 = i32::MAX as u64;

/// What a timer does when it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Signal; 0 = none.
    pub signal: u8,
    /// What its handler is told (`si_value`); `None` = the timer's number.
    pub value: Option<u64>,
    /// The thread it is for, or any.
    pub target: Option<Tid>,
    /// The clock that absolute times of it are of.
    pub clock: u64,
}

/// When a timer is due, and how often after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// From now on; 0 = never.
    pub left: u64,
    /// 0 = once.
    pub interval: u64,
}

/// A timer that was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// What to send.
    pub info: Info,
    /// The thread it is for, or any.
    pub target: Option<Tid>,
}

#[derive(Debug)]
struct Timer {
    notice: Notice,
    deadline: Option<u64>,
    interval: u64,
    /// Periods for which nothing could be sent, since a signal was last taken.
    missed: u64,
    /// Those that were told with the signal taken last.
    told: u64,
}

impl Timer {
    const fn new(notice: Notice) -> Self {
        Self {
            notice,
            deadline: None,
            interval: 0,
            missed: 0,
            told: 0,
        }
    }

    fn times(&self, now: u64) -> Times {
        let left = self
            .deadline
            .map_or(0, |deadline| deadline.saturating_sub(now).max(1));
        Times {
            left,
            interval: self.interval,
        }
    }

    fn set(&mut self, now: u64, times: Times) {
        self.deadline = (times.left != 0).then(|| now.saturating_add(times.left));
        self.interval = times.interval;
        (self.missed, self.told) = (0, 0);
    }

    /// How many periods are over, and on to the next one.
    fn expire(&mut self, now: u64) -> u64 {
        let Some(deadline) = self.deadline.filter(|&deadline| deadline <= now) else {
            return 0;
        };
        let Some(more) = (now - deadline).checked_div(self.interval) else {
            self.deadline = None;
            return 1;
        };
        let periods = more.saturating_add(1);
        self.deadline = Some(deadline.saturating_add(periods.saturating_mul(self.interval)));
        periods
    }
}

/// The timers of a program.
#[derive(Debug)]
pub struct Timers {
    /// That of setitimer(2) and alarm(2).
    real: Timer,
    made: BTreeMap<u32, Timer>,
    next: u32,
    /// When the host comes back, as it was told last.
    armed: Option<u64>,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            real: Timer::new(Notice {
                signal: SIGALRM,
                value: None,
                target: None,
                clock: 0,
            }),
            made: BTreeMap::new(),
            next: 0,
            armed: None,
        }
    }
}

impl Timers {
    /// Makes a timer that is not set; its number.
    ///
    /// # Errors
    /// `EAGAIN` when there are [`MAX_TIMERS`].
    pub fn make(&mut self, notice: Notice) -> Result<u32, Errno> {
        if self.made.len() >= MAX_TIMERS {
            return Err(Errno::EAGAIN);
        }
        // Ends: there are more numbers than timers.
        while self.made.contains_key(&self.next) {
            self.next = (self.next + 1) % i32::MAX as u32;
        }
        let id = self.next;
        self.made.insert(id, Timer::new(notice));
        self.next = (id + 1) % i32::MAX as u32;
        Ok(id)
    }

    /// Removes one.
    ///
    /// # Errors
    /// `EINVAL` if it is not there.
    pub fn delete(&mut self, id: u32) -> Result<(), Errno> {
        self.made.remove(&id).map(drop).ok_or(Errno::EINVAL)
    }

    fn timer(&mut self, id: Option<u32>) -> Result<&mut Timer, Errno> {
        match id {
            None => Ok(&mut self.real),
            Some(id) => self.made.get_mut(&id).ok_or(Errno::EINVAL),
        }
    }

    /// When timer `id` (`None` = that of setitimer) is due.
    ///
    /// # Errors
    /// `EINVAL` if it is not there.
    pub fn times(&mut self, id: Option<u32>, now: u64) -> Result<Times, Errno> {
        self.timer(id).map(|timer| timer.times(now))
    }

    /// Sets a timer; what it was set to before.
    ///
    /// # Errors
    /// `EINVAL` if it is not there.
    pub fn set(&mut self, id: Option<u32>, now: u64, times: Times) -> Result<Times, Errno> {
        let timer = self.timer(id)?;
        let before = timer.times(now);
        timer.set(now, times);
        Ok(before)
    }

    /// The clock of timer `id`.
    ///
    /// # Errors
    /// `EINVAL` if it is not there.
    pub fn clock(&mut self, id: u32) -> Result<u64, Errno> {
        self.timer(Some(id)).map(|timer| timer.notice.clock)
    }

    /// The overruns told with the signal of timer `id` that was taken last.
    ///
    /// # Errors
    /// `EINVAL` if it is not there.
    pub fn overruns(&mut self, id: u32) -> Result<u64, Errno> {
        self.timer(Some(id)).map(|timer| timer.told)
    }

    /// What there is to send at the time `now`; `is_pending` says whether a signal
    /// still waits, for this thread or any: then its periods are overruns.
    pub fn expire(
        &mut self,
        now: u64,
        mut is_pending: impl FnMut(u8, Option<Tid>) -> bool,
    ) -> Vec<Due> {
        let mut due = Vec::new();
        let all = self.made.iter_mut().map(|(id, timer)| (Some(*id), timer));
        for (id, timer) in all.chain([(None, &mut self.real)]) {
            let periods = timer.expire(now);
            let Notice {
                signal,
                value,
                target,
                ..
            } = timer.notice;
            if periods == 0 || signal == 0 {
                continue;
            }
            let Some(id) = id else {
                due.push(Due {
                    info: Info::new(signal, code::SI_KERNEL, [0; 4]),
                    target,
                });
                continue;
            };
            if is_pending(signal, target) {
                timer.missed = timer.missed.saturating_add(periods);
                continue;
            }
            timer.missed = timer.missed.saturating_add(periods - 1);
            let value = value.unwrap_or(u64::from(id));
            due.push(Due {
                info: Info::new(signal, code::SI_TIMER, [u64::from(id), value, 0, 0]),
                target,
            });
        }
        due
    }

    /// A signal is taken at the time `now`: one of a timer is told how often it was
    /// overrun.
    #[must_use]
    pub fn tell(&mut self, info: Info, now: u64) -> Info {
        if info.code() != code::SI_TIMER {
            return info;
        }
        // Another program's word for it may be in the field, or a timer gone since.
        let id = (info.field() & 0xffff_ffff) as u32;
        let Ok(timer) = self.timer(Some(id)) else {
            return info;
        };
        let missed = timer.missed.saturating_add(timer.expire(now));
        timer.told = missed.min(MOST_OVERRUNS);
        timer.missed = 0;
        info.with_field(u64::from(id) | timer.told << 32)
    }

    /// In how many nanoseconds the host is to come back (`u64::MAX` = not), if that
    /// is news to it.
    pub fn arm(&mut self, now: u64) -> Option<u64> {
        let made = self.made.values().filter_map(|timer| timer.deadline);
        let first = made.chain(self.real.deadline).min();
        if first == self.armed {
            return None;
        }
        self.armed = first;
        Some(first.map_or(u64::MAX, |at| at.saturating_sub(now).max(SHORTEST_NS)))
    }

    /// The host has come back: whatever it was told is over.
    pub fn came(&mut self) {
        self.armed = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO_ALL: Notice = Notice {
        signal: 10,
        value: Some(77),
        target: None,
        clock: 1,
    };

    fn never(_: u8, _: Option<Tid>) -> bool {
        false
    }

    #[test]
    fn a_timer_is_due_once_or_each_period() {
        let mut timers = Timers::default();
        let id = timers.make(TO_ALL).unwrap();
        let once = Times {
            left: 100,
            interval: 0,
        };
        assert_eq!(timers.set(Some(id), 0, once), Ok(Times::default()));
        assert_eq!(timers.times(Some(id), 40).unwrap().left, 60);
        assert_eq!(timers.expire(99, never), []);
        let due = timers.expire(100, never);
        assert_eq!(due.len(), 1);
        let words = due[0].info.to_words();
        assert_eq!((words[0], due[0].info.code(), words[3]), (10, -2, 77));
        assert_eq!(timers.expire(1000, never), []);
        let often = Times {
            left: 100,
            interval: 10,
        };
        timers.set(None, 1000, often).unwrap();
        assert_eq!(timers.expire(1100, never).len(), 1);
        assert_eq!(timers.times(None, 1105).unwrap().left, 5);
    }

    #[test]
    fn periods_that_cannot_be_told_are_overruns_of_the_next_signal() {
        let mut timers = Timers::default();
        let id = timers.make(TO_ALL).unwrap();
        let often = Times {
            left: 10,
            interval: 10,
        };
        timers.set(Some(id), 0, often).unwrap();
        let due = timers.expire(35, never);
        assert_eq!(timers.expire(58, |_, _| true), []);
        let told = timers.tell(due[0].info, 61);
        let field = u64::from(id) | 5 << 32;
        assert_eq!(told.field(), field, "20, 30; 40, 50; 60");
        assert_eq!(timers.overruns(id), Ok(5));
        let due = timers.expire(70, never);
        assert_eq!(timers.tell(due[0].info, 70).field() >> 32, 0);
    }

    #[test]
    fn the_host_is_asked_when_something_changed_and_not_too_often() {
        let mut timers = Timers::default();
        assert_eq!(timers.arm(0), None);
        let id = timers.make(TO_ALL).unwrap();
        let nanosecond = Times {
            left: 1,
            interval: 1,
        };
        timers.set(Some(id), 0, nanosecond).unwrap();
        assert_eq!(timers.arm(0), Some(SHORTEST_NS));
        assert_eq!(timers.arm(0), None, "it knows");
        timers.came();
        assert_eq!(timers.expire(SHORTEST_NS, never).len(), 1);
        assert_eq!(timers.arm(SHORTEST_NS), Some(SHORTEST_NS));
        timers.delete(id).unwrap();
        assert_eq!(timers.arm(0), Some(u64::MAX));
        assert_eq!(timers.delete(id), Err(Errno::EINVAL));
        assert_eq!(timers.set(Some(id), 0, nanosecond), Err(Errno::EINVAL));
    }

    #[test]
    fn times_at_the_end_of_time_do_no_harm() {
        let mut timers = Timers::default();
        let far = Times {
            left: u64::MAX,
            interval: u64::MAX,
        };
        timers.set(None, u64::MAX - 5, far).unwrap();
        assert_eq!(timers.expire(u64::MAX, never).len(), 1);
        assert_eq!(timers.expire(u64::MAX, never).len(), 1);
        for _ in 0..MAX_TIMERS {
            timers.make(TO_ALL).unwrap();
        }
        assert_eq!(timers.make(TO_ALL), Err(Errno::EAGAIN));
    }
}
