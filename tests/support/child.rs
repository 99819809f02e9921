//! Processes that tests start, stop and kill: the servers, and the test binary itself run again.
//!
//! The invariant: **no process outlives the test binary**, however that ends. A `Process` kills and
//! reaps on drop, also one that is stopped. For a binary that is killed itself, Linux kills what it
//! started (`setpriv --pdeathsig`, part of util-linux; without it, or elsewhere, nothing does).
//!
//! A test that needs a second process, one it can kill, is two test functions: the test, and the
//! child's body, which returns at once unless it was started as a child.
//!
//! ```ignore
//! #[test]
//! fn child_that_holds_and_hangs() {
//!     if !child::is_child() { return; }
//!     // … take the hold …
//!     child::say("held");
//!     child::hear(); // until the parent closes stdin
//! }
//!
//! #[test]
//! fn a_killed_holder_is_replaced() {
//!     let holder = ChildProcess::spawn("child_that_holds_and_hangs", &[("URL", &server.url())]);
//!     holder.expect("held");
//!     holder.kill();
//! }
//! ```

use super::wait::{BOUND, eventually_blocking};
use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock, mpsc};
use std::time::{Duration, Instant};

const CHILD: &str = "RELATCH_CHILD";

/// libtest writes to the same stdout, and starts a test's first line with the test's name.
const MARK: &str = "@relatch-child ";

/// A process that dies with the value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// A reaped process' id may belong to somebody else by now: no signal goes there.
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it; use [`command`] to make one that dies with us.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(command: Command) -> io::Result<Self> {
        let (answer, answered) = mpsc::sync_channel(1);
        SPAWNER
            .send((command, answer))
            .expect("the spawner lives as long as the process");
        let child = answered.recv().expect("the spawner answers every request")?;
        Ok(Self { child, ended: None })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it writes, if its command has that piped; once.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// The same of its errors.
    pub fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Sends a signal; to a process that has ended, nothing.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            // Not reaped, so the id is still ours, and the process is our child: this cannot fail.
            kill_process(Pid::from_child(&self.child), signal).expect("a child can be signalled");
        }
    }

    /// SIGSTOP, and waits until it does stand still.
    pub fn stop(&mut self) {
        self.signal(Signal::STOP);
        if self.ended.is_none() {
            // NOWAIT leaves it to be reaped: it may also have ended instead.
            let either = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(Pid::from_child(&self.child)), either).expect("a child can be waited for");
        }
    }

    /// SIGCONT.
    pub fn cont(&mut self) {
        self.signal(Signal::CONT);
    }

    /// SIGKILL, and waits until it is gone. Stopped processes die of it too.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        match self.ended {
            Some(status) => status,
            None => {
                let status = self.child.wait().expect("a child can be waited for");
                *self.ended.insert(status)
            }
        }
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be waited for");
        }
        self.ended
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

type Spawned = (Command, mpsc::SyncSender<io::Result<Child>>);

/// One thread starts every process, and never ends: the kernel counts the *thread* that forked as the
/// parent whose death is signalled. A test's own thread ends with the test, and would take a server
/// that other tests share with it.
static SPAWNER: LazyLock<mpsc::Sender<Spawned>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel::<Spawned>();
    std::thread::Builder::new()
        .name("spawner".to_owned())
        .spawn(move || {
            for (mut command, answer) in receiver {
                // Nobody waits for the answer any more: the child dies with it.
                if let Err(mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        })
        .expect("the system has room for one more thread");
    sender
});

/// Whether a process started here dies with this one, however this one ends.
pub fn dies_with_us() -> bool {
    static SETPRIV: LazyLock<bool> = LazyLock::new(|| {
        cfg!(target_os = "linux")
            && Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "true"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
    });
    *SETPRIV
}

/// A command for `program`, such that it dies with us where that can be had. Under `setpriv`, which
/// becomes the program by exec: the process id is the program's own.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    if !dies_with_us() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program.as_ref());
    command
}

/// Whether this process is a child: the body of a child's test function runs only then.
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// In a child: tells the parent one line.
pub fn say(line: &str) {
    let mut stdout = io::stdout().lock();
    // The first newline ends whatever libtest left without one. A parent that is gone hears nothing.
    let _ = write!(stdout, "\n{MARK}{line}\n").and_then(|()| stdout.flush());
}

/// In a child: waits for one line from the parent; `None` when the parent closed the pipe or is gone.
pub fn hear() -> Option<String> {
    let mut line = String::new();
    match io::stdin().read_line(&mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(line.trim_end().to_owned()),
    }
}

/// What the child wrote, so far.
#[derive(Default)]
struct Heard {
    said: VecDeque<String>,
    /// Everything else: libtest's own words and the child's `println!`. Shown when a wait fails.
    noise: Vec<String>,
    closed: bool,
}

/// This test binary, run again for one test function.
pub struct ChildProcess {
    process: Process,
    stdin: Option<ChildStdin>,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    test: String,
}

impl ChildProcess {
    /// Runs the test function `test` (with its modules, as libtest names it) in a process of its own.
    pub fn spawn(test: &str, variables: &[(&str, &str)]) -> Self {
        let this = std::env::current_exe().expect("a running test binary has a path");
        let mut command = command(this);
        command
            .args(["--exact", test, "--nocapture", "--test-threads", "1"])
            .env(CHILD, "1")
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Process::spawn(command).expect("the test binary can be started again");
        let stdin = process.child.stdin.take();
        let stdout = process.child.stdout.take().expect("stdout is piped");

        let heard = Arc::new((Mutex::new(Heard::default()), Condvar::new()));
        let theirs = Arc::clone(&heard);
        // Ends with the pipe, which ends with the child.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut heard = theirs.0.lock();
                match line.strip_prefix(MARK) {
                    Some(said) => heard.said.push_back(said.to_owned()),
                    None => heard.noise.push(line),
                }
                theirs.1.notify_all();
            }
            theirs.0.lock().closed = true;
            theirs.1.notify_all();
        });
        Self {
            process,
            stdin,
            heard,
            test: test.to_owned(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The next line that the child said, at once or not at all. For use with `eventually`.
    pub fn try_line(&self) -> Option<String> {
        self.heard.0.lock().said.pop_front()
    }

    /// The next line that the child said; `None` at the bound, or when the child ended without one.
    /// It blocks: a test that must keep its runtime going waits with `eventually` and `try_line`.
    pub fn line(&self, bound: Duration) -> Option<String> {
        let end = Instant::now() + bound;
        let mut heard = self.heard.0.lock();
        loop {
            if let Some(line) = heard.said.pop_front() {
                return Some(line);
            }
            if heard.closed || self.heard.1.wait_until(&mut heard, end).timed_out() {
                return heard.said.pop_front();
            }
        }
    }

    /// The next line, whatever it says; panics with all that the child wrote if none comes.
    #[track_caller]
    pub fn next(&self) -> String {
        match self.line(BOUND) {
            Some(line) => line,
            None => self.fail("line"),
        }
    }

    /// Waits for the next line and requires that it be this one.
    #[track_caller]
    pub fn expect(&self, line: &str) {
        let said = self.next();
        assert_eq!(said, line, "child {} said something else", self.test);
    }

    /// Writes one line to the child's stdin. A child that is gone hears nothing.
    pub fn tell(&mut self, line: &str) {
        if let Some(stdin) = &mut self.stdin {
            let _ = writeln!(stdin, "{line}").and_then(|()| stdin.flush());
        }
    }

    /// Closes the child's stdin: its `hear` answers `None`.
    pub fn hang_up(&mut self) {
        self.stdin = None;
    }

    pub fn stop(&mut self) {
        self.process.stop();
    }

    pub fn cont(&mut self) {
        self.process.cont();
    }

    pub fn kill(&mut self) -> ExitStatus {
        self.process.kill()
    }

    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until the child ends by itself; panics at the bound. It blocks.
    #[track_caller]
    pub fn wait(&mut self, bound: Duration) -> ExitStatus {
        let end = Instant::now() + bound;
        // Its stdout closes when it ends: wait for that, not in a loop.
        let mut heard = self.heard.0.lock();
        while !heard.closed {
            if self.heard.1.wait_until(&mut heard, end).timed_out() && !heard.closed {
                drop(heard);
                self.fail("end");
            }
        }
        drop(heard);
        let mut status = None;
        eventually_blocking(BOUND, "a process that closed its stdout ends", || {
            status = self.process.ended();
            status.is_some()
        });
        status.expect("the wait ended because there is one")
    }

    #[track_caller]
    fn fail(&self, awaited: &str) -> ! {
        let heard = self.heard.0.lock();
        panic!(
            "child {} gave us no {awaited} ({}); it wrote:\n{}",
            self.test,
            if heard.closed { "it ended" } else { "it still runs" },
            heard.noise.join("\n"),
        );
    }
}
