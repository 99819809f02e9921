//! The commands that run under locks and that look at them, as their users do: the built binary, a real server, real signals, a terminal.
#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "../support/mod.rs"]
mod support;

mod look;
mod picture;
mod run;
mod terminal;
mod watch;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};

use relatch::Relatch;
use rustix::process::{Pid, Signal};
use support::child::{Process, command};
use support::{BOUND, eventually_blocking};
use tempfile::TempDir;

const RELATCH: &str = env!("CARGO_BIN_EXE_relatch");

/// The command, in an environment that says nothing of servers, and without a terminal, whoever runs the tests.
fn relatch(url: Option<&str>, arguments: &[&str]) -> Command {
    let has_setsid = Command::new("setsid")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok();
    let mut relatch = if has_setsid {
        let mut relatch = command(OsStr::new("setsid"));
        relatch.arg(RELATCH);
        relatch
    } else {
        command(OsStr::new(RELATCH))
    };
    relatch.args(arguments).stdin(Stdio::null());
    quiet(|name, value| {
        match value {
            Some(value) => relatch.env(name, value),
            None => relatch.env_remove(name),
        };
    });
    if let Some(url) = url {
        relatch.env("RELATCH_REDIS", url);
    }
    relatch
}

/// What the environment of whoever runs the tests must not say.
fn quiet(mut set: impl FnMut(&str, Option<&str>)) {
    for name in [
        "RELATCH_REDIS",
        "RELATCH_CONFIG",
        "RELATCH_OWNER",
        "RELATCH_NAME",
        "RELATCH_FENCE",
        "RELATCH_HOLDS",
        "XDG_CONFIG_HOME",
        "NO_COLOR",
        "RUST_BACKTRACE",
    ] {
        set(name, None);
    }
    set("HOME", Some("/nonexistent"));
}

/// What it printed, and its status.
struct Done {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }
}

impl Done {
    #[track_caller]
    fn assert(self, code: i32, err: &str) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        assert!(self.err.contains(err), "no {err:?} in: {}", self.err);
        self
    }
}

fn done(url: Option<&str>, arguments: &[&str]) -> Done {
    relatch(url, arguments).output().unwrap().into()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A command that goes on while the test does something. What it writes is in files.
struct Running {
    process: Process,
    directory: TempDir,
}

impl Running {
    fn start(url: &str, arguments: &[&str]) -> Self {
        Self::start_as(relatch(Some(url), arguments))
    }

    fn start_as(command: Command) -> Self {
        Self::start_in(command, None)
    }

    /// With a stderr that is no file.
    fn start_with(command: Command, stderr: impl Into<Stdio>) -> Self {
        Self::start_in(command, Some(stderr.into()))
    }

    /// In a directory of its own.
    fn start_in(mut command: Command, stderr: Option<Stdio>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| Stdio::from(File::create(directory.path().join(name)).unwrap());
        command
            .stdout(file("out"))
            .stderr(stderr.unwrap_or_else(|| file("err")))
            .current_dir(directory.path());
        let process = Process::spawn(command).unwrap();
        Self { process, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn said(&self, file: &str) -> String {
        read(&self.path(file))
    }

    #[track_caller]
    fn until_it_says(&self, file: &str, words: &str) {
        eventually_blocking(BOUND, words, || self.said(file).contains(words));
    }

    #[track_caller]
    fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually_blocking(BOUND, "the command ends", || {
            status = self.process.ended();
            status.is_some()
        });
        status.unwrap()
    }

    /// The process that wrote its id into this file.
    #[track_caller]
    fn pid(&self, file: &str) -> Pid {
        let mut pid = None;
        eventually_blocking(BOUND, "a process id", || {
            pid = self.said(file).trim().parse().ok().and_then(Pid::from_raw);
            pid.is_some()
        });
        pid.unwrap()
    }
}

/// A test that fails may leave a command that nobody ends: the keeper, stopped as well, can't.
impl Drop for Running {
    fn drop(&mut self) {
        end_session(self.process.pid());
        self.process.kill();
    }
}

/// Kills whatever was started in the session that this process leads.
fn end_session(leader: u32) {
    for pid in processes(|stat| stat.session == leader) {
        send(pid, Signal::KILL);
    }
}

/// Of a process, as far as it matters here.
struct Stat {
    parent: u32,
    session: u32,
}

/// All that there are; none where the system does not tell.
fn processes(which: impl Fn(&Stat) -> bool) -> Vec<Pid> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|process| {
        let stat = fs::read_to_string(process.path().join("stat")).ok()?;
        // State, parent, group, session.
        let mut fields = stat.rsplit(") ").next()?.split(' ').skip(1);
        let stat = Stat {
            parent: fields.next()?.parse().ok()?,
            session: fields.nth(1)?.parse().ok()?,
        };
        which(&stat).then_some(())?;
        process.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)
    })
    .collect()
}

fn read(path: &Path) -> String {
    text(&fs::read(path).unwrap_or_default())
}

/// In a letter, where the system tells.
fn state(pid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.ok()?.rsplit(") ").next()?.chars().next()
}

/// Whether it stands still; where the system does not tell, soon enough.
fn is_stopped(pid: Pid) -> bool {
    state(pid).is_none_or(|state| state == 'T')
}

/// Whether a process runs; one that ended and was not waited for does not.
fn runs(pid: Pid) -> bool {
    match state(pid) {
        Some(state) => !matches!(state, 'Z' | 'X'),
        None if Path::new("/proc/self/stat").exists() => false,
        None => rustix::process::test_kill_process(pid).is_ok(),
    }
}

#[track_caller]
fn until_gone(pid: Pid) {
    eventually_blocking(BOUND, "the process is gone", || !runs(pid));
}

fn send(pid: Pid, signal: Signal) {
    let _ = rustix::process::kill_process(pid, signal);
}

/// A client of the test's own.
async fn client(url: &str) -> Relatch {
    Relatch::connect(url).await.unwrap()
}

async fn until_waiting(relatch: &Relatch, name: &str, count: u64) {
    support::eventually_async(BOUND, &format!("{count} wait for {name}"), async || {
        relatch
            .inspect(name)
            .await
            .is_ok_and(|seen| seen.waiter_count == count)
    })
    .await;
}

#[cfg(target_os = "linux")]
#[test]
fn a_test_that_fails_leaves_no_process_behind() {
    let server = support::RedisServer::start();
    let script = "trap '' TERM HUP; echo $$ > pid; sleep 100";
    let mut run = Running::start(&server.url(), &["run", "-w", "it", "--", "sh", "-c", script]);
    let (leader, command) = (run.process.pid(), run.pid("pid"));
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        run.process.stop();
        // Whoever else would have ended it: the keeper.
        for child in processes(|stat| stat.parent == leader) {
            if child != command {
                send(child, Signal::KILL);
                until_gone(child);
            }
        }
        std::panic::resume_unwind(Box::new("a test fails"));
    }));
    assert!(failed.is_err());
    until_gone(command);
}
