//! A process: load, run, end.
//!
//! `serve` is the kernel's main loop. The process that has the cores is the one
//! that all of the kernel is about; [`processes`] keeps the others. An address
//! space exists while its program runs and everything is given back when it ends,
//! however it ends.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE, align_up};
use enclave_abi::layout::{BOUNCE, BOUNCE_BYTES, USER_MIN};
use enclave_abi::queue::{Call, MAX_PROCESSES, RunArgs};
use enclave_core::aspace::{Aspace, Backing, Kind, Prot, Region};
use enclave_core::exec::{self, HEAD_BYTES, LoadPlan};
use enclave_core::stack::{self, AuxInfo};
use enclave_core::thread::{Threads, Tid};
use enclave_core::timer::Timers;
use spin::Mutex;
use zerocopy::FromBytes;

use crate::arch::{self, TrapFrame, extended, paging};
use crate::threads::{self, Context};
use crate::windows::{self, Windows};
use crate::{arenas, boot, clock, console, cores, host, imports, memory, phys, processes, signals};

/// Where position-independent programs go.
const PIE_BASE: u64 = 0x55_5555_0000;
/// Top of the stack region. All that a program maps by itself is in the first 512
/// GiB, which siblings may see ([`crate::windows`]).
const STACK_TOP: u64 = 0x7f_ffff_e000;
/// End of all that it may have, attachments among it; the page above stays free (a
/// SYSCALL in the last page would return to a non-canonical address).
const SPACE_END: u64 = 0x7fff_ffff_e000;
/// Default stack, as Linux's usual limit.
const STACK_BYTES: u64 = 8 << 20;
/// Largest stack a run may ask for.
const STACK_MAX: u64 = 1 << 30;
/// Mappings without a wish go below this address.
pub(crate) const MMAP_TOP: u64 = 0x7f_8000_0000;
/// Run refused: status word of ProcessExit (not a wait status).
const STATUS_REFUSED: u64 = 1 << 32;

/// State of a process.
#[derive(Debug)]
pub(crate) struct Process {
    /// The VMM's number for this run.
    pub(crate) run: u64,
    /// Its number.
    pub(crate) pid: Tid,
    /// Its top-level page table.
    pub(crate) root: u64,
    /// Program path, for reports and `/proc/self/exe`.
    pub(crate) path: String,
    /// What is mapped.
    pub(crate) aspace: Aspace,
    /// First address of the heap.
    pub(crate) brk_start: u64,
    /// Current program break.
    pub(crate) brk: u64,
    /// Bytes of the stack.
    pub(crate) stack_bytes: u64,
    /// Most bytes of memory it may have; 0 = no limit of its own.
    pub(crate) limit_bytes: u64,
    /// Siblings whose memory it sees.
    pub(crate) windows: Windows,
    /// Its place among its siblings, if it said so.
    pub(crate) rank: Option<u32>,
    /// Its threads.
    pub(crate) threads: Threads<Context>,
    /// Nanoseconds that threads ran which have ended.
    pub(crate) ended_ns: u64,
    /// Exit code of the first thread, once that has ended.
    pub(crate) first_code: Option<u64>,
    /// Signal handlers, and signals for any of its threads.
    pub(crate) signals: signals::Program,
    /// Its timers.
    pub(crate) timers: Timers,
    /// Monotonic nanoseconds when its image was loaded, and when it was entered first;
    /// 0 = not yet.
    pub(crate) loaded_ns: u64,
    pub(crate) entered_ns: u64,
    /// Unknown calls already logged, one bit per number below 512.
    pub(crate) logged: [u64; 8],
    /// Report of the fault or signal that ended it.
    pub(crate) report: String,
}

impl Process {
    /// Whether `bytes` more are within its limit.
    pub(crate) fn may_have(&self, bytes: u64) -> bool {
        self.limit_bytes == 0
            || self.aspace.backed_bytes().saturating_add(bytes) <= self.limit_bytes
    }

    /// Nanoseconds that its threads ran.
    pub(crate) fn ran_ns(&mut self, now: u64) -> u64 {
        let threads: Vec<Tid> = self.threads.numbers().collect();
        let mut sum = self.ended_ns;
        for tid in threads {
            let is_running = self.threads.core_of(tid).is_some();
            if let Some(context) = self.threads.context(tid) {
                sum = sum.saturating_add(context.total_ns(is_running, now));
            }
        }
        sum
    }

    /// Bytes of the frames `[start, start + len)` that it has mapped.
    pub(crate) fn bytes_within(&self, start: u64, len: u64) -> u64 {
        let of = |region: &Region| {
            let Backing::Frames(pa) = region.backing else {
                return 0;
            };
            let end = (pa + (region.end - region.start)).min(start + len);
            end.saturating_sub(pa.max(start))
        };
        self.aspace.iter().map(of).sum()
    }

    /// The region at or nearest to `address`, in words.
    pub(crate) fn describe(&self, address: u64) -> String {
        let Some(region) = self.aspace.nearest(address) else {
            return "nothing is mapped".to_string();
        };
        let relation = if (region.start..region.end).contains(&address) {
            "in"
        } else {
            "nearest"
        };
        format!(
            "{relation} region {:#x}-{:#x} {} {:?}",
            region.start, region.end, region.prot, region.kind
        )
    }
}

static CURRENT: Mutex<Option<Process>> = Mutex::new(None);
/// Its number, at hand for the cheapest of all calls.
static PID: AtomicU64 = AtomicU64::new(0);

/// Runs `f` on the process that has the cores. Panics when there is none: only
/// system calls and faults of a program come here.
pub(crate) fn with<T>(f: impl FnOnce(&mut Process) -> T) -> T {
    match CURRENT.lock().as_mut() {
        Some(process) => f(process),
        None => panic!("no program runs"),
    }
}

/// The same if there is one.
pub(crate) fn if_any<T>(f: impl FnOnce(&mut Process) -> T) -> Option<T> {
    CURRENT.lock().as_mut().map(f)
}

/// The same, to look at, unless somebody else is at it.
pub(crate) fn if_free<T>(f: impl FnOnce(&Process) -> T) -> Option<T> {
    CURRENT.try_lock()?.as_ref().map(f)
}

/// The number of the process that has the cores.
#[inline]
pub(crate) fn pid() -> u64 {
    PID.load(Ordering::Relaxed)
}

/// Its run.
pub(crate) fn current_run() -> Option<u64> {
    if_any(|p| p.run)
}

/// Takes it away. For [`processes`], which keeps it.
pub(crate) fn take_current() -> Option<Process> {
    CURRENT.lock().take()
}

/// Makes `process` the one that has the cores. For [`processes`].
pub(crate) fn set_current(process: Process) {
    PID.store(process.pid.into(), Ordering::Relaxed);
    *CURRENT.lock() = Some(process);
}

/// The kernel's main loop: sleeps without a program, runs those that there are.
pub(crate) fn serve() -> ! {
    loop {
        let word = arch::go_on();
        if word == NOBODY {
            host::idle();
        } else {
            ended(word);
        }
    }
}

/// The word of [`go_on`] when there is no process.
const NOBODY: u64 = u64::MAX;

/// Enters whoever is next; the word with which the program ended.
pub(crate) fn go_on() -> u64 {
    let Some(mut frame) = threads::resume() else {
        return NOBODY;
    };
    if host::poll_attention() {
        signals::attend(&mut frame);
    }
    cores::start();
    arch::enter_user(&frame)
}

/// Gives everything back of the program that ended with this status word.
fn ended(status: u64) {
    let Some(run) = current_run() else {
        return;
    };
    let is_by_signal = status & 0x7f != 0;
    // Its tables go: no core may use them.
    let root = arch::root();
    if let Some(pid) = if_any(|p| p.pid) {
        windows::forget(pid);
    }
    processes::leave();
    arch::edit(root);
    let past = give_back(is_by_signal);
    arch::edit(arch::boot_root());
    finish(run, status, &past);
}

/// What there is to tell of a process that has ended.
#[derive(Debug, Default)]
pub(crate) struct Past {
    report: String,
    loaded_ns: u64,
    entered_ns: u64,
}

/// Gives back what the current process has, whose tables no core uses.
pub(crate) fn give_back(is_by_signal: bool) -> Past {
    imports::end_all();
    arenas::end_all(u64::from(is_by_signal));
    tear_down()
}

/// Strings and numbers of a run command, copied out of the bounce area.
struct Request {
    run: u64,
    image_bytes: u64,
    stack_bytes: u64,
    limit_bytes: u64,
    path: String,
    argv: Vec<Vec<u8>>,
    envp: Vec<Vec<u8>>,
}

fn read_request(&[run, image_bytes, bytes, ..]: &[u64; 7]) -> Option<Request> {
    let mut head = [0; size_of::<RunArgs>()];
    phys::read_bytes(BOUNCE, &mut head);
    let head = RunArgs::read_from_bytes(&head).ok()?;
    if bytes > BOUNCE_BYTES || u64::from(head.strings_bytes) + 24 > bytes {
        return None;
    }
    let mut strings = vec![0; head.strings_bytes as usize];
    phys::read_bytes(BOUNCE + size_of::<RunArgs>() as u64, &mut strings);
    let mut parts = strings.split(|&byte| byte == 0).map(<[u8]>::to_vec);
    let argv = parts.by_ref().take(head.argc as usize).collect();
    let envp = parts.by_ref().take(head.envc as usize).collect();
    let path = String::from_utf8_lossy(&parts.next()?).into_owned();
    Some(Request {
        run,
        image_bytes,
        stack_bytes: head.stack_bytes,
        limit_bytes: head.limit_bytes,
        path,
        argv,
        envp,
    })
}

/// Starts what there is to start.
pub(crate) fn start_all() {
    loop {
        let answer = host::call(Call::TakeRun, [0; 7]);
        let run = answer[0];
        if run == 0 {
            return;
        }
        let request = read_request(&answer).ok_or_else(|| "the run command is malformed".into());
        if let Err(reason) = request.and_then(|request| load(&request)) {
            let past = Past {
                report: reason,
                ..Past::default()
            };
            finish(run, STATUS_REFUSED, &past);
        }
    }
}

/// Tells the host that run `run` is over.
pub(crate) fn finish(run: u64, status: u64, past: &Past) {
    let bytes = host::bounce_text(past.report.as_bytes());
    host::tell(
        Call::ProcessExit,
        [run, status, bytes, past.loaded_ns, past.entered_ns, 0, 0],
    );
}

/// Gives the current process's memory back.
pub(crate) fn tear_down() -> Past {
    let Some(mut process) = take_current() else {
        return Past::default();
    };
    windows::close_all(&mut process);
    paging::free_space(process.root);
    process.threads.contexts().for_each(Context::free);
    process
        .aspace
        .remove(0, !(PAGE_SIZE - 1), &mut |piece| release(&piece));
    Past {
        report: process.report,
        loaded_ns: process.loaded_ns,
        entered_ns: process.entered_ns,
    }
}

/// Gives the frames of a removed region back.
pub(crate) fn release(piece: &Region) {
    if let Backing::Frames(pa) = piece.backing {
        memory::free(pa, piece.end - piece.start);
    }
}

/// Adds a process with the program of `request`, ready to run.
fn load(request: &Request) -> Result<(), String> {
    if processes::is_full() {
        return Err(format!("there are {MAX_PROCESSES} processes already"));
    }
    let plan = plan(request)?;
    let area = extended::Area::initial().ok_or("out of memory for the first thread")?;
    let Ok(root) = paging::new_space() else {
        area.free();
        return Err("out of memory for page tables".to_string());
    };
    let pid = processes::new_number();
    let first = Context::first(name_of(&request.path), area);
    let mut threads = Threads::ready(pid, first, cores::count());
    threads.use_cores(cores::all());
    let process = Process {
        run: request.run,
        pid,
        root,
        path: request.path.clone(),
        aspace: Aspace::new(USER_MIN, SPACE_END),
        brk_start: plan.brk_start,
        brk: plan.brk_start,
        stack_bytes: 0,
        limit_bytes: request.limit_bytes,
        windows: [None; MAX_PROCESSES],
        rank: None,
        threads,
        ended_ns: 0,
        first_code: None,
        signals: signals::Program::default(),
        timers: Timers::default(),
        loaded_ns: 0,
        entered_ns: 0,
        logged: [0; 8],
        report: String::new(),
    };
    processes::add(process, || {
        load_segments(request, &plan)?;
        let rsp = make_stack(request, &plan)?;
        with(|p| {
            if let Some(first) = p.threads.context(pid) {
                first.begin_at(TrapFrame::start(plan.entry, rsp));
            }
            p.loaded_ns = clock::monotonic_ns();
        });
        Ok(())
    })
}

/// What prctl(2) says of a program that has not said otherwise: its file.
fn name_of(path: &str) -> [u8; threads::NAME_BYTES] {
    let mut name = [0; threads::NAME_BYTES];
    let file = path.rsplit('/').next().unwrap_or(path);
    for (to, from) in name
        .iter_mut()
        .zip(file.bytes())
        .take(threads::NAME_BYTES - 1)
    {
        *to = from;
    }
    name
}

/// Reads the file's head and lays the program out.
fn plan(request: &Request) -> Result<LoadPlan, String> {
    let head_bytes = request.image_bytes.min(HEAD_BYTES);
    let staging = memory::alloc(HEAD_BYTES, PAGE_SIZE).ok_or("out of memory")?;
    let read = read_image(request.run, 0, staging, head_bytes);
    let mut head = vec![0; head_bytes as usize];
    phys::read_bytes(staging, &mut head);
    memory::free(staging, HEAD_BYTES);
    read?;
    exec::plan(&head, request.image_bytes, PIE_BASE, USER_MIN, MMAP_TOP)
        .map_err(|error| error.to_string())
}

/// Lets the VMM read `[offset, offset + len)` of the image to `pa`.
fn read_image(run: u64, offset: u64, pa: u64, len: u64) -> Result<(), String> {
    let answer = host::call(Call::ImageRead, [run, offset, pa, len, 0, 0, 0])[0];
    if answer == len {
        return Ok(());
    }
    Err(format!(
        "the program file could not be read: {} of {len} bytes at {offset}",
        answer as i64
    ))
}

fn load_segments(request: &Request, plan: &LoadPlan) -> Result<(), String> {
    for (index, segment) in plan.segments.iter().enumerate() {
        let len = segment.end - segment.start;
        let align = if len >= LARGE_PAGE_SIZE {
            LARGE_PAGE_SIZE
        } else {
            PAGE_SIZE
        };
        // Where the segment starts in its large page, so that those line up.
        let skew = segment.start % align;
        let block = memory::alloc(len + skew, align)
            .ok_or_else(|| format!("out of memory: a segment needs {len} bytes"))?;
        if skew != 0 {
            memory::free(block, skew);
        }
        let pa = block + skew;
        for copy in plan.copies.iter().filter(|copy| copy.segment == index) {
            read_image(
                request.run,
                copy.file_offset,
                pa + (copy.va - segment.start),
                copy.bytes,
            )?;
        }
        insert(Region {
            start: segment.start,
            end: segment.end,
            prot: segment.prot,
            backing: Backing::Frames(pa),
            kind: Kind::Image,
        })?;
    }
    Ok(())
}

/// Enters a region and maps it.
fn insert(region: Region) -> Result<(), String> {
    let Backing::Frames(pa) = region.backing else {
        return Ok(());
    };
    if !with(|p| p.may_have(region.len_bytes())) {
        memory::free(pa, region.len_bytes());
        return Err("its memory limit is smaller than the program".to_string());
    }
    if let Err(error) = with(|p| p.aspace.insert(region)) {
        memory::free(pa, region.end - region.start);
        return Err(format!("{error:?} at {:#x}", region.start));
    }
    paging::map(
        region.start,
        pa,
        region.end - region.start,
        paging::user_bits(region.prot),
    )
    .map_err(|_| "out of memory for page tables".to_string())
}

fn make_stack(request: &Request, plan: &LoadPlan) -> Result<u64, String> {
    let wanted = if request.stack_bytes == 0 {
        STACK_BYTES
    } else {
        request.stack_bytes
    };
    let len = align_up(wanted.clamp(64 << 10, STACK_MAX), PAGE_SIZE).ok_or("stack size wraps")?;
    let info = boot::info();
    let [mut random, mut rest] = [[0; 16]; 2];
    random.copy_from_slice(&info.random[..16]);
    rest.copy_from_slice(&info.random[16..]);
    // Another value for each run.
    for (byte, salt) in random
        .iter_mut()
        .zip(arch::rdtsc().to_le_bytes().iter().cycle())
    {
        *byte ^= salt.wrapping_add(rest[0]);
    }
    let aux = AuxInfo {
        phdr: plan.phdr,
        phent: plan.phent,
        phnum: plan.phnum,
        entry: plan.entry,
        base: 0,
        random,
        hwcap: info.hwcap,
        hwcap2: info.hwcap2,
        execfn: &request.path,
        uid: 0,
        euid: 0,
        gid: 0,
        egid: 0,
        minsigstksz: 4096,
        sysinfo_ehdr: None,
    };
    let strings = |list: &'_ [Vec<u8>]| list.to_vec();
    let (argv, envp) = (strings(&request.argv), strings(&request.envp));
    let image = stack::build(
        STACK_TOP,
        argv.iter().map(Vec::as_slice),
        envp.iter().map(Vec::as_slice),
        &aux,
    )
    .map_err(|error| error.to_string())?;
    let block = memory::alloc(len, PAGE_SIZE)
        .ok_or_else(|| format!("out of memory: a stack of {len} bytes"))?;
    let above = image.bytes.len() as u64;
    if above + PAGE_SIZE > len {
        memory::free(block, len);
        return Err("arguments and environment do not fit the stack".to_string());
    }
    phys::write_bytes(block + len - above, &image.bytes);
    with(|p| p.stack_bytes = len);
    insert(Region {
        start: STACK_TOP - len,
        end: STACK_TOP,
        prot: Prot::READ_WRITE,
        backing: Backing::Frames(block),
        kind: Kind::Stack,
    })?;
    Ok(image.rsp)
}

/// Ends the running program as by exit(2).
pub(crate) fn end_by_exit(code: u64) -> ! {
    cores::end((code & 0xff) << 8)
}

/// Ends the running program by a signal, with a report.
pub(crate) fn end_by_signal(signal: u8, report: String) -> ! {
    let path = with(|p| {
        p.report = report;
        format!("{}: killed by signal {signal}: {}", p.path, p.report)
    });
    console::line(format_args!("{path}"));
    drop(path);
    cores::end(u64::from(signal & 0x7f))
}

/// Ends the program if it is to be killed.
pub(crate) fn end_if_killed() {
    let run = with(|p| p.run);
    if let Some(signal) = host::take_kill(run) {
        end_by_signal(signal, "killed on request".to_string());
    }
}
