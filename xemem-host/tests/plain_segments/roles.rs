//! What the other process can be told to do.
//!
//! ```text
//!  make NAME BYTES MODE       exports a signallable segment and holds it
//!  attach NAME ro|rw OFF LEN  attaches a piece and holds it
//!  store OFF VALUE, load OFF  64-bit words of what it holds
//!  fill VALUE                 every word of it
//!  subscribe                  to what it has attached
//!  signal N, wait             N signals; waits for at least one
//!  lock N, sleep-at-futex     see `locks`
//!  fork                       a child that only holds what it inherited
//!  end
//! ```
//!
//! Answers `ok`, a number, or `error ERRNO`.

use crate::broker_process::SOON;
use crate::forks;
use crate::locks;
use crate::peer::ANSWER;
use rustix::io::Errno;
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::atomic::Ordering;
use xemem_host::{
    Access, Broker, ClientError, PlainAttachment, Segment, SegmentRequest, SharedMemory, Signals,
    Target, Waited,
};

struct Player {
    broker: Broker,
    exported: Option<Segment>,
    attached: Option<PlainAttachment>,
    signals: Option<Signals>,
}

/// Does what standard input says until it ends.
pub(crate) fn play(socket: &Path) {
    let broker = Broker::connect(socket).expect("the broker answers");
    let mut player = Player {
        broker,
        exported: None,
        attached: None,
        signals: None,
    };
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("orders");
        if line == "end" {
            return;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match player.act(&words) {
            Ok(answer) => answer,
            Err(error) => format!("error {}", name(error.errno())),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{ANSWER}{answer}").expect("somebody listens");
        out.flush().expect("somebody listens");
    }
}

fn name(errno: Errno) -> String {
    let known = [
        (Errno::NOENT, "ENOENT"),
        (Errno::ACCESS, "EACCES"),
        (Errno::INVAL, "EINVAL"),
        (Errno::IDRM, "EIDRM"),
        (Errno::TIMEDOUT, "ETIMEDOUT"),
    ];
    let found = known.iter().find(|(known, _)| *known == errno);
    found.map_or_else(|| format!("{errno:?}"), |(_, name)| (*name).to_owned())
}

fn number<T: std::str::FromStr>(word: &str) -> T {
    word.parse()
        .unwrap_or_else(|_| panic!("{word} is no number"))
}

impl Player {
    fn memory(&self) -> &SharedMemory {
        let attached = self.attached.as_ref().map(|attached| &attached.memory);
        let exported = || self.exported.as_ref()?.memory.as_ref();
        attached.or_else(exported).expect("something to access")
    }

    fn act(&mut self, words: &[&str]) -> Result<String, ClientError> {
        let mut answer = "ok".to_owned();
        match *words {
            ["make", name, bytes, mode] => {
                self.exported = Some(self.broker.make_segment(&SegmentRequest {
                    name: name.to_owned(),
                    size_bytes: number(bytes),
                    mode: u32::from_str_radix(mode, 8).expect("octal"),
                    signallable: true,
                    ..SegmentRequest::default()
                })?);
            }
            ["attach", name, how, offset, len] => self.attach(name, how, offset, len)?,
            ["store", offset, value] => {
                let word = self.memory().atomic_u64(number(offset));
                let word = word.expect("a writable word");
                word.store(number(value), Ordering::Release);
            }
            ["fill", value] => {
                let value: u64 = number(value);
                let bytes = value.to_ne_bytes().repeat(self.memory().len() / 8);
                self.memory().write(0, &bytes).expect("writable");
            }
            ["load", offset] => {
                let word = self.memory().load_u64(number(offset));
                answer = word.expect("a word").to_string();
            }
            ["subscribe"] => {
                let attached = self.attached.as_ref().expect("attached");
                let target = Target::Access(attached.apid);
                self.signals = Some(self.broker.subscribe(target)?);
            }
            ["signal", times] => {
                let target = self.target();
                for _ in 0..number::<u64>(times) {
                    self.broker.signal(target)?;
                }
            }
            ["wait"] => answer = self.wait()?,
            ["lock", times] => locks::count_under_mutex(self.memory(), number(times)),
            ["fork"] => answer = forks::fork_a_holder().to_string(),
            ["sleep-at-futex"] => locks::sleep_at_futex(self.memory()),
            _ => answer = format!("cannot {}", words.join(" ")),
        }
        Ok(answer)
    }

    fn target(&self) -> Target {
        let attached = self.attached.as_ref();
        let exported = || self.exported.as_ref().map(|it| Target::Segment(it.segid));
        let attached = attached.map(|attached| Target::Access(attached.apid));
        attached.or_else(exported).expect("something to signal")
    }

    fn attach(&mut self, name: &str, how: &str, at: &str, len: &str) -> Result<(), ClientError> {
        let access = match how {
            "ro" => Access::ReadOnly,
            _ => Access::ReadWrite,
        };
        let segid = self.broker.lookup(name, None)?;
        let apid = self.broker.get_for(segid, access)?;
        let attached = self.broker.attach_segment(apid, number(at), number(len))?;
        self.attached = Some(attached);
        Ok(())
    }

    fn wait(&mut self) -> Result<String, ClientError> {
        let own = self.exported.as_mut().and_then(|it| it.signals.as_mut());
        let signals = self.signals.as_mut().or(own).expect("a subscription");
        Ok(match signals.wait(Some(SOON))? {
            Waited::Signals(count) => count.to_string(),
            Waited::Ended => "ended".to_owned(),
        })
    }
}
