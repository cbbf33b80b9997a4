//! A running `xasm-bench`, in an enclave or natively, asked line by line.
//!
//! Used by the measurements. The program ends when its input does; dropping
//! the guest closes the input and waits, and kills what does not end.

use anyhow::{Context as _, anyhow};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use xasm_bench::protocol::{self, Full, Request};

/// How long a guest may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The program and its two pipes.
#[derive(Debug)]
pub(crate) struct Guest {
    child: Child,
    requests: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl Guest {
    /// Starts `command`, which runs `xasm-bench`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        let requests = child.stdin.take();
        let replies = child.stdout.take().context("read from the guest")?;
        Ok(Self {
            child,
            requests,
            replies: BufReader::new(replies),
        })
    }

    /// Number of its process; of the command that runs it, in an enclave.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Has one request done; returns its numbers.
    ///
    /// # Errors
    /// What the guest says, or that it is gone.
    fn ask(&mut self, request: &Request) -> anyhow::Result<Vec<u64>> {
        let failed = || format!("guest: {request}");
        self.tell(request).with_context(failed)?;
        self.answer().with_context(failed)
    }

    /// Asks without waiting for [`Guest::answer`].
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn tell(&mut self, request: &Request) -> anyhow::Result<()> {
        let requests = self.requests.as_mut().context("its input is closed")?;
        writeln!(requests, "{request}").context("its input is closed")
    }

    /// The numbers of the oldest answer that was not taken yet.
    ///
    /// # Errors
    /// What the guest says, or that it is gone.
    pub(crate) fn answer(&mut self) -> anyhow::Result<Vec<u64>> {
        let mut line = String::new();
        self.replies.read_line(&mut line).context("no answer")?;
        protocol::parse_reply(&line).map_err(|why| anyhow!(why))
    }

    /// For requests that answer `N` counts.
    ///
    /// # Errors
    /// What the guest says, that it is gone, or another count of numbers.
    pub(crate) fn counts<const N: usize>(&mut self, request: &Request) -> anyhow::Result<[u64; N]> {
        let numbers = self.ask(request)?;
        <[u64; N]>::try_from(numbers)
            .map_err(|numbers| anyhow!("guest: {request}: {numbers:?} are not {N} numbers"))
    }

    /// For requests that answer any count of times; exact up to 2^53 ns.
    ///
    /// # Errors
    /// What the guest says, or that it is gone.
    pub(crate) fn all_times(&mut self, request: &Request) -> anyhow::Result<Vec<f64>> {
        let numbers = self.ask(request)?;
        Ok(numbers.into_iter().map(|ns| ns as f64).collect())
    }

    /// For requests that answer `N` times.
    ///
    /// # Errors
    /// As [`Guest::counts`].
    pub(crate) fn times<const N: usize>(&mut self, request: &Request) -> anyhow::Result<[f64; N]> {
        Ok(self.counts::<N>(request)?.map(|ns| ns as f64))
    }

    /// Makes an arena; returns the bytes of a host page behind it.
    ///
    /// # Errors
    /// As [`Guest::ask`].
    pub(crate) fn make(
        &mut self,
        name: &str,
        bytes: u64,
        chunk_bytes: u64,
        banks: u32,
    ) -> anyhow::Result<u64> {
        let name = name.to_owned();
        let request = Request::Make {
            name,
            bytes,
            chunk_bytes,
            banks,
            full: Full::Newest,
            retain: 1,
        };
        self.counts(&request).map(|[backing]| backing)
    }

    /// Makes an arena whose memory has been used in every bank.
    ///
    /// # Errors
    /// As [`Guest::ask`].
    pub(crate) fn make_warm(
        &mut self,
        name: &str,
        bytes: u64,
        chunk_bytes: u64,
        banks: u32,
    ) -> anyhow::Result<u64> {
        let backing = self.make(name, bytes, chunk_bytes, banks)?;
        let name = name.to_owned();
        self.counts::<0>(&Request::Warm { name })?;
        Ok(backing)
    }

    /// Ends an arena.
    ///
    /// # Errors
    /// As [`Guest::ask`].
    pub(crate) fn end(&mut self, name: &str) -> anyhow::Result<()> {
        let name = name.to_owned();
        self.counts::<0>(&Request::End { name }).map(drop)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.requests.take();
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
