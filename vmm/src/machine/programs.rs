//! The programs that the kernel runs: what each is given, told and owns here.
//!
//! Part of [`Service`], on the vCPU's thread. Whose a forwarded call is says the
//! kernel ([`current_run`]); which access or segment is whose is kept here, and one
//! process gets nowhere with the numbers of another.

use std::fs::File;
use std::sync::Arc;

use enclave_abi::layout::{BOUNCE, BOUNCE_BYTES};
use enclave_abi::queue::{Call, MAX_PROCESSES, PROCESS_READY, PROCESS_RUNS, ProcessEntry, RunArgs};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

use super::queue::{QueueError, current_run};
use super::service::Service;
use super::starts::now_ns;
use super::{ProcessInfo, ProcessState, RunOutcome, RunSpec};
use crate::forward::Session;

/// Exit status word that says that a program was refused.
const STATUS_REFUSED: u64 = 1 << 32;

/// A program that runs.
pub(super) struct Running {
    pub(super) image: File,
    pub(super) session: Session,
}

impl Service {
    /// The next program for the kernel: its run, the bytes of its image and those
    /// in the bounce area; run 0 when there is none.
    pub(super) fn take_run(&mut self) -> Result<[u64; 7], QueueError> {
        while let Some((run, spec)) = self.waiting.pop_front() {
            self.shared.starts.fetched(run, now_ns());
            self.shared.started(run);
            match self.start(run, *spec) {
                Ok((image_bytes, packed)) => {
                    self.ram.write_slice(&packed, GuestAddress(BOUNCE))?;
                    return Ok([run, image_bytes, packed.len() as u64, 0, 0, 0, 0]);
                }
                Err(reason) => self.shared.finished(run, RunOutcome::Refused { reason }),
            }
        }
        Ok([0; 7])
    }

    /// Opens what a program needs here; the bytes of its image, and what the kernel
    /// has to know, packed.
    fn start(&mut self, run: u64, spec: RunSpec) -> Result<(u64, Vec<u8>), String> {
        let strings = pack_strings(&spec);
        let head = RunArgs {
            argc: u32::try_from(spec.argv.len()).unwrap_or(u32::MAX),
            envc: u32::try_from(spec.envp.len()).unwrap_or(u32::MAX),
            strings_bytes: u32::try_from(strings.len()).unwrap_or(u32::MAX),
            pad: 0,
            stack_bytes: spec.stack_bytes,
            limit_bytes: spec.limit_bytes,
        };
        let bytes = size_of::<RunArgs>() + strings.len();
        if bytes as u64 > BOUNCE_BYTES {
            return Err(format!("arguments and environment take {bytes} bytes"));
        }
        let image = File::from(spec.image);
        let image_bytes = match image.metadata() {
            Ok(meta) => meta.len(),
            Err(error) => return Err(format!("cannot read {}: {error}", spec.path)),
        };
        let log = Arc::clone(&self.log);
        let mut session = Session::new(
            &self.exports,
            &spec.cwd,
            spec.stdio,
            Some(Arc::new(move |bytes: &[u8]| log.write(bytes))),
        );
        session.set_program(&spec.path);
        self.running.insert(run, Running { image, session });
        let mut packed = head.as_bytes().to_vec();
        packed.extend(strings);
        Ok((image_bytes, packed))
    }

    pub(super) fn process_exit(&mut self, a: [u64; 7]) {
        let run = a[0];
        self.killing.remove(&run);
        self.telling.remove(&run);
        self.shared.starts.told(run, a[3], a[4]);
        let report = self.bounce_text(a[2]);
        let outcome = match a[1] {
            STATUS_REFUSED => RunOutcome::Refused { reason: report },
            status if status & 0x7f == 0 => RunOutcome::Exited {
                code: u8::try_from(status >> 8 & 0xff).unwrap_or(u8::MAX),
            },
            status => RunOutcome::Signaled {
                signal: u8::try_from(status & 0x7f).unwrap_or(0),
                report,
            },
        };
        // Closes the program's descriptors before anybody is told.
        if self.running.remove(&run).is_some() {
            self.end_shares(run, a[1] & 0x7f != 0);
            self.list_arenas();
        }
        self.shared.finished(run, outcome);
    }

    /// Gives back what a program that is over shared with others. Its kernel has
    /// ended its arenas and imports; accesses and segments are found here.
    fn end_shares(&mut self, run: u64, died: bool) {
        if self.running.is_empty() {
            self.owners.clear();
            self.imports.end_all();
            self.arenas.end_all(died);
            return;
        }
        let of_run = self.owners.iter().filter(|&(_, &owner)| owner == run);
        let ids: Vec<u64> = of_run.map(|(&id, _)| id).collect();
        for id in ids {
            self.owners.remove(&id);
            // It is one of the two, if it is still there.
            if self.imports.release(id).is_err() {
                let _ = self.imports.remove(id);
            }
        }
    }

    /// Forgets all programs: there is no kernel any more that runs them.
    pub(super) fn forget_programs(&mut self) {
        self.running.clear();
        self.waiting.clear();
    }

    /// Ends what they share with others as well.
    pub(super) fn end_everything(&mut self) {
        self.forget_programs();
        self.owners.clear();
        self.imports.end_all();
        self.arenas.end_all(true);
        self.list_arenas();
    }

    /// The kernel tells of its processes.
    pub(super) fn processes(&mut self, bytes: u64) {
        self.is_asking = false;
        let most = (MAX_PROCESSES * size_of::<ProcessEntry>()) as u64;
        let bytes = self.bounce_bytes(bytes.min(most)).unwrap_or_default();
        let entries = bytes.chunks_exact(size_of::<ProcessEntry>());
        let told = entries.filter_map(|entry| ProcessEntry::read_from_bytes(entry).ok());
        let told = told.map(|entry| ProcessInfo {
            run: entry.run,
            pid: entry.pid,
            program: String::new(),
            threads: entry.threads,
            state: match entry.state {
                PROCESS_RUNS => ProcessState::Running,
                PROCESS_READY => ProcessState::Ready,
                _ => ProcessState::Waiting,
            },
            memory_bytes: entry.memory_bytes,
            cpu_ns: entry.cpu_ns,
        });
        self.shared.told_processes(told.collect());
    }

    /// Whether the access or segment that a call names is another process's.
    pub(super) fn is_anothers(&self, call: Call, a: [u64; 7]) -> bool {
        let id = match call {
            Call::ImportAttach => a[1],
            Call::ImportRelease
            | Call::SegmentName
            | Call::SegmentRemove
            | Call::SegmentSignal
            | Call::SegmentSubscribe
            | Call::SegmentWait => a[0],
            _ => return false,
        };
        let run = current_run(&self.ram).unwrap_or(0);
        self.owners.get(&id).is_some_and(|&owner| owner != run)
    }

    /// Takes note of whose an access or a segment is.
    pub(super) fn note_owner(&mut self, call: Call, a: [u64; 7], answer: [u64; 7]) {
        let run = current_run(&self.ram).unwrap_or(0);
        match call {
            Call::ImportGet if answer[0].cast_signed() > 0 => {
                self.owners.insert(answer[0], run);
            }
            Call::SegmentMake if answer[0] == 0 => {
                self.owners.insert(answer[1], run);
            }
            Call::ImportRelease | Call::SegmentRemove => {
                self.owners.remove(&a[0]);
            }
            _ => {}
        }
    }
}

/// argv, envp and path, each ended by a zero byte. Zero bytes inside a string
/// cannot come from a command line; they would end it early.
fn pack_strings(spec: &RunSpec) -> Vec<u8> {
    let mut bytes = Vec::new();
    for text in spec.argv.iter().chain(&spec.envp).chain([&spec.path]) {
        bytes.extend(text.bytes().filter(|&byte| byte != 0));
        bytes.push(0);
    }
    bytes
}
