//! One session: packets in, the target's doing, packets out.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};

use super::packet::{Item, MAX_BYTES, Reader, encode, from_hex, to_hex};
use super::registers::description;
use super::threads::{self, Whom};
use super::{Go, Registers, Stop, Target, TargetError};

/// What the target did, as the session knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Stopped,
    Runs,
    Over,
}

/// A session.
pub(super) struct Session<'a> {
    input: OwnedFd,
    output: OwnedFd,
    target: &'a mut dyn Target,
    reader: Reader,
    state: State,
    /// gdb and we trust the connection: no more `+`.
    is_trusting: bool,
    /// The core that gdb looks at.
    core: usize,
    /// The core that steps where gdb names none; any if there is none.
    goes: Whom,
}

impl<'a> Session<'a> {
    pub(super) fn new(input: OwnedFd, output: OwnedFd, target: &'a mut dyn Target) -> Self {
        Self {
            input,
            output,
            target,
            reader: Reader::default(),
            state: State::Stopped,
            is_trusting: false,
            core: 0,
            goes: Whom::Any,
        }
    }

    /// Serves until it is over; the target goes on then.
    pub(super) fn run(mut self) {
        // gdb finds a stopped target when it connects.
        if let Ok(core) = self.target.stop() {
            self.core = core;
            while self.state != State::Over {
                self.turn();
            }
        }
        self.target.let_go();
    }

    fn turn(&mut self) {
        let (input, event) = {
            let mut fds = [
                PollFd::new(&self.input, PollFlags::IN),
                PollFd::from_borrowed_fd(self.target.event(), PollFlags::IN),
            ];
            match rustix::io::retry_on_intr(|| poll(&mut fds, None)) {
                Ok(_) => {
                    let [input, event] = fds.map(|fd| !fd.revents().is_empty());
                    (input, event)
                }
                Err(_) => {
                    self.state = State::Over;
                    return;
                }
            }
        };
        if event {
            self.stopped_by_itself();
        }
        if input && self.state != State::Over {
            self.receive();
        }
    }

    fn stopped_by_itself(&mut self) {
        let Some((core, stop)) = self.target.take_stop() else {
            return;
        };
        if stop == Stop::End {
            self.state = State::Over;
            return;
        }
        if self.state == State::Runs {
            self.state = State::Stopped;
            self.core = core;
            let why = match stop {
                Stop::Breakpoint => "swbreak:;",
                _ => "",
            };
            self.tell_stop("05", why);
        }
    }

    fn receive(&mut self) {
        let mut bytes = [0; MAX_BYTES];
        match rustix::io::read(self.input.as_fd(), &mut bytes) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return,
            Ok(0) | Err(_) => {
                self.state = State::Over;
                return;
            }
            Ok(count) => self.reader.push(bytes.get(..count).unwrap_or_default()),
        }
        while self.state != State::Over
            && let Some(item) = self.reader.next_item()
        {
            match item {
                Item::Broken => self.write(b"-"),
                Item::Interrupt => self.interrupt(),
                Item::Packet(packet) => {
                    if !self.is_trusting {
                        self.write(b"+");
                    }
                    match String::from_utf8(packet) {
                        Ok(text) => self.packet(&text),
                        Err(_) => self.send(""),
                    }
                }
            }
        }
    }

    fn interrupt(&mut self) {
        if self.state != State::Runs {
            return;
        }
        match self.target.stop() {
            Ok(core) => {
                self.state = State::Stopped;
                self.core = core;
                self.tell_stop("02", "");
            }
            // It runs on; gdb asks its user whether to give up.
            Err(_) => self.send("O656e636c61766520646f6573206e6f742073746f700a"),
        }
    }

    /// Tells that the core looked at has stopped.
    fn tell_stop(&mut self, signal: &str, why: &str) {
        let id = threads::id(self.core);
        self.send(&format!("T{signal}thread:{id};{why}"));
    }

    fn packet(&mut self, text: &str) {
        let mut letters = text.chars();
        let first = letters.next();
        let rest = letters.as_str();
        match first {
            Some('?') => self.tell_stop("05", ""),
            Some('g') => match self.target.registers(self.core) {
                Ok(registers) => self.send(&to_hex(&registers.to_bytes())),
                Err(error) => self.refuse(error),
            },
            Some('G') => match from_hex(rest).and_then(|it| Registers::from_bytes(&it)) {
                Some(registers) => {
                    let set = self.target.set_registers(self.core, &registers);
                    self.done(set);
                }
                None => self.send("E01"),
            },
            Some('m') => self.read(rest),
            Some('M') => self.write_memory(rest),
            Some('c' | 's') if !rest.is_empty() => self.send("E01"),
            Some('c') => self.resume_one(Go::On),
            Some('s') => self.resume_one(Go::Step),
            Some('Z' | 'z') => self.breakpoint(first == Some('Z'), rest),
            Some('H') => self.choose(rest),
            Some('T') => match threads::whom(rest, self.target.cores()) {
                Some(Whom::Core(_)) => self.send("OK"),
                _ => self.send("E01"),
            },
            Some('D') => {
                self.send("OK");
                self.state = State::Over;
            }
            // A debugger that goes leaves the program alone: `kill` does more.
            Some('k') => self.state = State::Over,
            Some('q' | 'Q' | 'v') => self.query(text),
            _ => self.send(""),
        }
    }

    fn query(&mut self, text: &str) {
        if text.starts_with("qSupported") {
            self.send(&format!(
                "PacketSize={MAX_BYTES:x};qXfer:features:read+;swbreak+;QStartNoAckMode+;\
                 vContSupported+"
            ));
        } else if let Some(range) = text.strip_prefix("qXfer:features:read:target.xml:") {
            self.describe(range);
        } else if text == "QStartNoAckMode" {
            self.send("OK");
            self.is_trusting = true;
        } else if text == "vCont?" {
            self.send("vCont;c;C;s;S");
        } else if let Some(action) = text.strip_prefix("vCont;") {
            match threads::each(action, self.target.cores()) {
                Some(each) => self.resume(&each),
                None => self.send("E01"),
            }
        } else if let Some(id) = text.strip_prefix("qThreadExtraInfo,") {
            match threads::whom(id, self.target.cores()) {
                Some(Whom::Core(core)) => {
                    self.send(&to_hex(format!("core {core} of the enclave").as_bytes()));
                }
                _ => self.send("E01"),
            }
        } else {
            let ids = threads::list(self.target.cores());
            let looked_at = format!("QC{}", threads::id(self.core));
            self.send(match text {
                "qfThreadInfo" => &ids,
                "qsThreadInfo" => "l",
                "qC" => &looked_at,
                // The program was there before gdb: quitting detaches.
                "qAttached" => "1",
                _ => "",
            });
        }
    }

    /// `Hg` says which core the following is about, `Hc` which one goes on by `c`
    /// and `s`.
    fn choose(&mut self, text: &str) {
        let mut letters = text.chars();
        let which = letters.next();
        let Some(whom) = threads::whom(letters.as_str(), self.target.cores()) else {
            return self.send("E01");
        };
        match (which, whom) {
            (Some('g'), Whom::Core(core)) => self.core = core,
            (Some('g'), Whom::Any) => {}
            (Some('c'), whom) => self.goes = whom,
            _ => return self.send("E01"),
        }
        self.send("OK");
    }

    fn describe(&mut self, range: &str) {
        let Some((at, len)) = two_numbers(range) else {
            return self.send("E01");
        };
        let whole = description();
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let at = number(at).min(whole.len());
        let end = at
            .saturating_add(number(len).min(MAX_BYTES / 2))
            .min(whole.len());
        let more = if end < whole.len() { 'm' } else { 'l' };
        let part = whole.get(at..end).unwrap_or_default();
        self.send(&format!("{more}{part}"));
    }

    fn read(&mut self, range: &str) {
        let Some((address, len)) = two_numbers(range) else {
            return self.send("E01");
        };
        let len = usize::try_from(len)
            .unwrap_or(usize::MAX)
            .min(MAX_BYTES / 2 - 8);
        let mut bytes = vec![0; len];
        match self.target.read(self.core, address, &mut bytes) {
            Ok(()) => self.send(&to_hex(&bytes)),
            Err(TargetError::NoMemory(end)) if end > address => {
                let len = usize::try_from(end - address).unwrap_or(0).min(len);
                self.send(&to_hex(bytes.get(..len).unwrap_or_default()));
            }
            Err(error) => self.refuse(error),
        }
    }

    fn write_memory(&mut self, text: &str) {
        let parsed = text.split_once(':').and_then(|(range, data)| {
            let (address, len) = two_numbers(range)?;
            let data = from_hex(data)?;
            (u64::try_from(data.len()) == Ok(len)).then_some((address, data))
        });
        match parsed {
            Some((address, data)) => {
                let written = self.target.write(self.core, address, &data);
                self.done(written);
            }
            None => self.send("E01"),
        }
    }

    fn breakpoint(&mut self, insert: bool, text: &str) {
        // Kind 0 is by software; hardware ones and watchpoints are not offered.
        let address = text
            .strip_prefix("0,")
            .and_then(|rest| rest.split_once(','))
            .and_then(|(address, _)| u64::from_str_radix(address, 16).ok());
        let Some(address) = address else {
            return self.send("");
        };
        let done = if insert {
            self.target.insert(self.core, address)
        } else {
            self.target.remove(self.core, address)
        };
        self.done(done);
    }

    /// `c` or `s`: the other cores go on as well.
    fn resume_one(&mut self, go: Go) {
        let core = match self.goes {
            Whom::Core(core) => core,
            Whom::Any => self.core,
        };
        let mut each = vec![Go::On; self.target.cores()];
        if let Some(place) = each.get_mut(core) {
            *place = go;
        }
        self.resume(&each);
    }

    fn resume(&mut self, each: &[Go]) {
        match self.target.resume(each) {
            Ok(()) => self.state = State::Runs,
            Err(error) => self.refuse(error),
        }
    }

    fn done(&mut self, result: Result<(), TargetError>) {
        match result {
            Ok(()) => self.send("OK"),
            Err(error) => self.refuse(error),
        }
    }

    fn refuse(&mut self, error: TargetError) {
        self.send(match error {
            TargetError::NoMemory(_) => "E0e",
            TargetError::Stuck => "E10",
            TargetError::Interpreted => "E5f",
            TargetError::Kvm(_) => "E05",
        });
    }

    fn send(&mut self, text: &str) {
        self.write(&encode(text));
    }

    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match rustix::io::retry_on_intr(|| rustix::io::write(self.output.as_fd(), bytes)) {
                Ok(count) if count > 0 => bytes = bytes.get(count..).unwrap_or_default(),
                _ => {
                    self.state = State::Over;
                    return;
                }
            }
        }
    }
}

/// `a,b` in hexadecimal.
fn two_numbers(text: &str) -> Option<(u64, u64)> {
    let (first, second) = text.split_once(',')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(first)?, number(second)?))
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
