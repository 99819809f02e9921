//! The command, as a user runs it: what it prints, and its exit status.
#![cfg(feature = "cli")]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::child::{Process, command};
use support::{RedisServer, eventually_blocking, free_port};
use tempfile::TempDir;

/// The demo says that it ends within half a minute. A loaded machine may take longer.
const BOUND: Duration = Duration::from_secs(60);

/// The command, in an environment that says nothing of servers.
fn relatch(arguments: &[&str]) -> Command {
    let mut relatch = command(OsStr::new(env!("CARGO_BIN_EXE_relatch")));
    relatch
        .args(arguments)
        .env_remove("RELATCH_REDIS")
        .stdin(Stdio::null());
    relatch
}

fn output(arguments: &[&str]) -> Output {
    relatch(arguments).output().expect("the command can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Four levels of folders, with something on each, and something that is ignored.
fn tree() -> TempDir {
    let root = tempfile::tempdir().expect("the system has a directory for temporary files");
    let write = |path: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("it is below the root")).expect("folders can be made");
        fs::write(path, "twelve bytes").expect("files can be written");
    };
    for path in [
        "top.txt",
        "a/one.txt",
        "a/b/two.txt",
        "a/b/c/three.txt",
        "d/four.txt",
    ] {
        write(path);
    }
    write("ignored/five.txt");
    fs::write(root.path().join(".gitignore"), "ignored/\n").expect("files can be written");
    root
}

fn path(tree: &TempDir) -> &str {
    tree.path()
        .to_str()
        .expect("temporary directories have plain names")
}

/// A demo that goes on while the test does something.
struct Running {
    process: Process,
    directory: TempDir,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("the system has a directory for temporary files");
        let file = |name: &str| File::create(directory.path().join(name)).expect("files can be written");
        let mut command = relatch(arguments);
        command.stdout(file("out")).stderr(file("err"));
        let process = Process::spawn(command).expect("the command can be started");
        Self { process, directory }
    }

    fn said(&self, name: &str) -> String {
        let path: &Path = self.directory.path();
        text(&fs::read(path.join(name)).expect("what was written can be read"))
    }

    fn wait_until_it_says(&self, words: &str) {
        eventually_blocking(BOUND, words, || self.said("err").contains(words));
    }

    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        eventually_blocking(BOUND, "the demo ends", || {
            status = self.process.ended();
            status.is_some()
        });
        status.expect("the wait ended because there is one")
    }
}

#[track_caller]
fn json(out: &str, err: &str) -> Value {
    match serde_json::from_str(out) {
        Ok(value) => value,
        Err(error) => panic!("{error}: no JSON: {out}\n{err}"),
    }
}

#[track_caller]
fn assert_worked(report: &Value) {
    assert_eq!(report["passed"], true, "{report:#}");
    for promise in ["no_overlap", "no_stale_write_accepted", "nothing_left_behind"] {
        assert_eq!(report["verdict"][promise], true, "{report:#}");
    }
    for count in [
        &report["read"]["acquired"],
        &report["read"]["reentered"],
        &report["upgradable"]["acquired"],
        &report["write"]["acquired"],
        &report["upgrades"],
        &report["downgrades"],
        &report["fences_issued"],
        &report["stale_writes_refused"],
        &report["questions_answered"],
        &report["folders_walked"],
    ] {
        assert!(count.as_u64() > Some(0), "{report:#}");
    }
    assert_eq!(report["deepest_reentry"], 4, "{report:#}");
    assert_eq!((&report["files"], &report["folders"]), (&5.into(), &5.into()));
}

#[test]
fn the_demo_needs_no_server() {
    let tree = tree();
    let output = output(&["demo", "--tree", path(&tree), "--seconds", "2", "--json"]);
    assert_worked(&json(&text(&output.stdout), &text(&output.stderr)));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_demo_ends_with_a_table_and_a_verdict() {
    let tree = tree();
    let output = output(&["demo", "--tree", path(&tree), "--seconds", "1"]);
    let out = text(&output.stdout);
    for words in [
        "deepest re-entry      4 levels",
        "stale writes refused",
        "✓ no overlap",
        "✓ no stale write accepted",
        "✓ nothing left behind",
    ] {
        assert!(out.contains(words), "no {words:?} in:\n{out}");
    }
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_demo_works_on_an_empty_tree() {
    let tree = tempfile::tempdir().expect("the system has a directory for temporary files");
    let output = output(&["demo", "--tree", path(&tree), "--seconds", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn an_interrupt_ends_the_demo_early_with_its_verdict() {
    let tree = tree();
    let mut demo = Running::start(&["demo", "--tree", path(&tree), "--seconds", "25", "--json"]);
    demo.wait_until_it_says("of 25 s");
    demo.process.signal(Signal::INT);
    assert_eq!(demo.end().code(), Some(0));
    let report = json(&demo.said("out"), &demo.said("err"));
    assert_worked(&report);
    assert!(report["seconds"].as_f64() < Some(25.0), "{report:#}");
}

#[test]
fn a_killed_process_does_not_stop_the_others() {
    let (tree, server) = (tree(), RedisServer::start());
    let mut demo = Running::start(&[
        "demo",
        "--tree",
        path(&tree),
        "--redis",
        &server.url(),
        "--processes",
        "3",
        "--seconds",
        "8",
        "--json",
    ]);
    demo.wait_until_it_says("of 8 s");
    let said = demo.said("err");
    let pid = said
        .lines()
        .find_map(|line| line.strip_prefix("worker 2: pid ")?.parse().ok())
        .and_then(Pid::from_raw)
        .unwrap_or_else(|| panic!("no pid in:\n{said}"));
    kill_process(pid, Signal::KILL).expect("a worker can be killed");

    let status = demo.end();
    let report = json(&demo.said("out"), &demo.said("err"));
    assert_worked(&report);
    assert_eq!(status.code(), Some(0));
    assert_eq!(report["killed"], 1, "{report:#}");
    let [first, second, third] = [0, 1, 2].map(|at| &report["processes"][at]);
    assert_eq!(second["ending"], "killed", "{report:#}");
    for other in [first, third] {
        assert_eq!(other["ending"], "finished", "{report:#}");
        // Also after the killed one's lease of 2 s.
        let last = |process: &Value| process["last_acquired_s"].as_f64().unwrap_or_default();
        assert!(last(other) > last(second) + 2.5, "{report:#}");
    }
}

#[track_caller]
fn assert_could_not_run(arguments: &[&str], words: &str) {
    let output = output(arguments);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains(words), "no {words:?} in:\n{err}");
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn what_could_not_run_says_why_with_status_2() {
    assert_could_not_run(&["demo", "--tree", "no/such/tree"], "there is no tree to read at");
    assert_could_not_run(&["demo", "--tree", "Cargo.toml"], "is not a folder");
    assert_could_not_run(&["demo", "--processes", "3"], "--redis <URL>");
    assert_could_not_run(&["demo", "--seconds", "26"], "1..=25");
    let url = format!("redis://127.0.0.1:{}", free_port());
    assert_could_not_run(
        &["demo", "--redis", &url],
        "without --redis the demo needs no server",
    );
}

#[test]
fn help_tells_the_exit_statuses() {
    for arguments in [&["--help"][..], &["demo", "--help"]] {
        let out = text(&output(arguments).stdout);
        assert!(out.contains("Exit status: 0 "), "{out}");
        assert!(!out.contains("demo-worker"), "{out}");
    }
}
