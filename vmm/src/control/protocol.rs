//! Messages of the control socket and of the ready pipe.
//!
//! One JSON object per line, at most [`MAX_LINE_BYTES`], over a stream
//! socket. Each carries the protocol number, checked before anything else is
//! read. `run` brings four descriptors ([`RUN_FDS`]) with its first byte; no
//! other message but `gdb`, which brings two, may bring any.
//!
//! ```text
//! client                              server
//!   run + 4 descriptors ─────────────►
//!                      ◄───────────── accepted {run}   (or error, and closed)
//!   kill {run, signal} ──────────────►   (any number, also from elsewhere)
//!                      ◄───────────── ok
//!                      ◄───────────── finished {run, outcome}
//! ```
//!
//! A client that goes away before `finished` has its program killed (SIGHUP), unless
//! it ran it `detached`. `wait` has any client told of the end of a run.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{CoreRequest, EnclaveConfig};
use crate::confine::Confinement;
use crate::failure::{Class, Failure};
use crate::machine::dump::Dump;
use crate::machine::{
    MachineReport, MachineState, MemoryNode, ProcessInfo, RunOutcome, StartPhases,
};
use crate::placement::Placement;

/// Version of every message here.
pub const PROTOCOL: u32 = 1;
/// Longest message, its newline included.
pub const MAX_LINE_BYTES: usize = 1 << 20;
/// Descriptors of a `run`: image, standard input, output, error.
pub const RUN_FDS: usize = 4;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Are you there?
    Ping {},
    /// Run a program.
    Run {
        /// Shown as the program's path.
        path: String,
        /// Argument strings, the program's name first.
        argv: Vec<String>,
        /// Environment, `KEY=value`.
        envp: Vec<String>,
        /// Working directory in the enclave; `None`: where `host_cwd` is
        /// exported, else `/`.
        cwd: Option<String>,
        /// Working directory of the client on the host.
        host_cwd: String,
        /// Stack bytes; 0 = default.
        stack_bytes: u64,
        /// Most bytes of memory it may have; 0 = no limit of its own.
        #[serde(default)]
        limit_bytes: u64,
        /// It goes on when the client goes.
        #[serde(default)]
        detached: bool,
    },
    /// Tell how a run ends, or has ended: `finished`.
    Wait {
        /// Which.
        run: u64,
    },
    /// Send a running program a signal, which it may handle.
    Kill {
        /// Which.
        run: u64,
        /// With which signal, 1 to 64.
        signal: u8,
    },
    /// Tell of all processes.
    Processes {},
    /// Tell everything.
    Inspect {},
    /// Tell where cores and memory really are. Not part of `inspect`, because
    /// the host kernel looks at every page for it.
    Placement {},
    /// Tell what vCPUs, queue and memslots are doing (`debug dump`).
    Dump {},
    /// Hold the vCPUs.
    Freeze {},
    /// Let the vCPUs go on.
    Thaw {},
    /// Serve gdb on the two descriptors that come along: what to read from, what
    /// to write to.
    Gdb {},
    /// Change what it has.
    Update(Change),
    /// Stop the enclave and end.
    Stop {},
}

/// A change of what a running enclave has. Whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Change {
    /// More memory.
    AddMemory {
        /// How much, in whole blocks.
        bytes: u64,
    },
    /// Less memory: of what was added.
    RemoveMemory {
        /// How much, in whole blocks.
        bytes: u64,
    },
    /// More cores.
    AddCores {
        /// How many, or which of the host's.
        cores: CoreRequest,
    },
    /// A fresh kernel with what it has; its programs end.
    Reset {},
    /// Fewer cores.
    RemoveCores {
        /// How many, the last ones first, or which of the host's.
        cores: CoreRequest,
    },
}

/// What the server answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Done, or yes.
    Ok,
    /// The program starts.
    Accepted {
        /// Its number.
        run: u64,
    },
    /// The program has ended.
    Finished {
        /// Its number.
        run: u64,
        /// How.
        outcome: RunOutcome,
        /// From its request to its first instruction, for who ran it.
        #[serde(default)]
        phases: StartPhases,
    },
    /// Answer to `processes`.
    Processes {
        /// One by one.
        list: Vec<ProcessInfo>,
    },
    /// Answer to `inspect`.
    Inspection(Box<Inspection>),
    /// Answer to `placement`.
    Placement(Box<Placement>),
    /// Answer to `dump`.
    Dump(Box<Dump>),
    /// The change was made.
    Updated(Updated),
    /// Refused or failed.
    Error(Failure),
}

/// What an enclave has after a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Updated {
    /// Private RAM in bytes.
    pub mem_bytes: u64,
    /// Cores of the host, ascending.
    #[serde(default)]
    pub cores: Vec<usize>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The effective configuration: what was asked and what was granted. Also the
/// content of `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effective {
    /// The request.
    pub config: EnclaveConfig,
    /// The cores granted.
    pub cores: Vec<usize>,
    /// Other threads of the same physical cores, kept idle.
    #[serde(default)]
    pub idle: Vec<usize>,
    /// Where memory comes from.
    #[serde(default)]
    pub memory_node: MemoryNode,
    /// Bytes of memory that were added since, and not removed.
    #[serde(default)]
    pub added_bytes: u64,
    /// Warnings given at admission.
    pub warnings: Vec<String>,
    /// Process id of the VMM.
    pub pid: i32,
    /// Wall-clock milliseconds since 1970 at creation.
    pub created_unix_ms: u64,
}

/// Everything about a live enclave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Inspection {
    /// What was asked and granted.
    pub effective: Effective,
    /// State of the machine.
    pub machine: MachineState,
    /// Facts and counters of the machine.
    pub report: MachineReport,
    /// Milliseconds since creation.
    pub uptime_ms: u64,
    /// Bytes the console log lost.
    pub console_dropped: u64,
    /// How the last program ended, if one has.
    pub last_outcome: Option<RunOutcome>,
    /// What its process can no longer do, read back from the host kernel.
    #[serde(default)]
    pub confinement: Confinement,
    /// Version of the VMM.
    pub version: String,
}

/// The one line a VMM writes to its ready pipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ready {
    /// The enclave is up.
    Ok(Box<Started>),
    /// It is not, and nothing of it is left.
    Error(Failure),
}

/// A fresh enclave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Started {
    /// What was asked and granted.
    pub effective: Effective,
    /// State of the machine.
    pub machine: MachineState,
    /// Facts of the machine, warnings among them.
    pub report: MachineReport,
    /// Where it really is.
    pub placement: Placement,
}

/// The versioned envelope of every line.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    protocol: u32,
    body: T,
}

#[derive(Deserialize)]
struct Head {
    protocol: u32,
}

/// Encodes a message as one line.
///
/// # Errors
/// [`Class::Usage`] when it is longer than [`MAX_LINE_BYTES`].
pub fn encode<T: Serialize>(body: &T) -> Result<Vec<u8>, Failure> {
    let what = "encode a control message";
    let envelope = Envelope {
        protocol: PROTOCOL,
        body,
    };
    let mut line =
        serde_json::to_vec(&envelope).map_err(|e| Failure::new(Class::Failure, what, e))?;
    line.push(b'\n');
    if line.len() > MAX_LINE_BYTES {
        let why = format!(
            "it takes {} bytes, at most {MAX_LINE_BYTES} fit",
            line.len()
        );
        return Err(Failure::new(Class::Usage, what, why));
    }
    Ok(line)
}

/// Decodes one line.
///
/// # Errors
/// [`Class::Protocol`]: another version, or not a message of this protocol.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, Failure> {
    let what = "read a control message";
    let fail = |why: String| Failure::new(Class::Protocol, what, why);
    let head: Head = serde_json::from_slice(line).map_err(|e| fail(e.to_string()))?;
    if head.protocol != PROTOCOL {
        let why = format!("protocol {}, this program speaks {PROTOCOL}", head.protocol);
        return Err(fail(why).with_hint("enclavectl version"));
    }
    let envelope: Envelope<T> = serde_json::from_slice(line).map_err(|e| fail(e.to_string()))?;
    Ok(envelope.body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{MemoryPlace, NodeBytes, VcpuPlace};

    fn round(request: &Request) {
        let line = encode(request).unwrap();
        assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
        assert_eq!(&decode::<Request>(&line).unwrap(), request);
    }

    #[test]
    fn every_request_survives_encoding() {
        round(&Request::Ping {});
        round(&Request::Inspect {});
        round(&Request::Processes {});
        round(&Request::Placement {});
        round(&Request::Dump {});
        round(&Request::Freeze {});
        round(&Request::Thaw {});
        round(&Request::Gdb {});
        round(&Request::Stop {});
        round(&Request::Update(Change::AddMemory { bytes: 1 << 40 }));
        round(&Request::Update(Change::RemoveMemory { bytes: 0 }));
        round(&Request::Update(Change::Reset {}));
        let cores = CoreRequest::List(vec![3, 5]);
        round(&Request::Update(Change::AddCores { cores }));
        let cores = CoreRequest::Count(2);
        round(&Request::Update(Change::RemoveCores { cores }));
        round(&Request::Kill { run: 7, signal: 15 });
        round(&Request::Run {
            path: "/a\nb".into(),
            argv: vec!["a".into(), String::new()],
            envp: vec!["K=\"v\"".into()],
            cwd: None,
            host_cwd: "/".into(),
            stack_bytes: 1 << 20,
            limit_bytes: 1 << 30,
            detached: true,
        });
        round(&Request::Wait { run: 3 });
    }

    #[test]
    fn outcomes_survive_encoding() {
        let outcome = RunOutcome::Signaled {
            signal: 11,
            report: "at 0x0".into(),
        };
        let line = encode(&Reply::Finished {
            run: 3,
            outcome: outcome.clone(),
            phases: vec![("loaded".into(), 1)],
        });
        let reply: Reply = decode(&line.unwrap()).unwrap();
        assert!(matches!(reply, Reply::Finished { run: 3, outcome: o, .. } if o == outcome));
    }

    #[test]
    fn a_placement_survives_encoding() {
        let placement = Placement {
            vcpus: vec![VcpuPlace {
                allowed: [3].into(),
                nodes: [1].into(),
                ..VcpuPlace::default()
            }],
            memory: vec![MemoryPlace {
                nodes: vec![NodeBytes { node: 1, bytes: 9 }],
                ..MemoryPlace::default()
            }],
        };
        let line = encode(&Reply::Placement(Box::new(placement.clone())));
        let reply: Reply = decode(&line.unwrap()).unwrap();
        assert!(matches!(reply, Reply::Placement(p) if *p == placement));
    }

    #[test]
    fn another_version_is_named_before_the_body_is_read() {
        let failure = decode::<Request>(b"{\"protocol\":9,\"body\":{\"op\":\"fly\"}}").unwrap_err();
        assert_eq!(failure.class, Class::Protocol);
        assert!(failure.why.contains("protocol 9"), "{failure}");
    }

    #[test]
    fn nonsense_is_a_protocol_failure() {
        for line in [
            &b""[..],
            b"{}",
            b"[]",
            b"null",
            b"\xff\xfe",
            b"{\"protocol\":1}",
            b"{\"protocol\":-1,\"body\":{\"op\":\"ping\"}}",
            b"{\"protocol\":1,\"body\":{\"op\":\"fly\"}}",
            b"{\"protocol\":1,\"body\":{\"op\":\"kill\",\"run\":1,\"signal\":300}}",
            b"{\"protocol\":1,\"body\":{\"op\":\"ping\",\"more\":1}}",
        ] {
            let failure = decode::<Request>(line).unwrap_err();
            assert_eq!(failure.class, Class::Protocol, "{failure}");
        }
        let deep = "[".repeat(100_000);
        assert!(decode::<Request>(deep.as_bytes()).is_err());
    }

    #[test]
    fn a_message_too_long_is_refused_by_its_writer() {
        let failure = encode(&"x".repeat(MAX_LINE_BYTES)).unwrap_err();
        assert_eq!(failure.class, Class::Usage);
    }
}
