//! `relatch bench`, as a user runs it: that it measures, what it prints, what it leaves, its exit status. Not how quick anything is: that depends
//! on what else the machine does, and is for `relatch bench --check` to say.
#![cfg(feature = "cli")]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use support::child::{Process, command};
use support::{Certificates, RedisCluster, RedisServer, Watched, eventually_blocking, free_port};

/// For a loaded machine.
const BOUND: Duration = Duration::from_secs(60);

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

#[track_caller]
fn report(output: &Output) -> Value {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: no JSON: {out}\n{err}"))
}

/// Each row has all that its documentation says, and numbers that can be.
#[track_caller]
fn assert_rows(case: &Value) {
    let rows = case["rows"].as_array().expect("rows are an array");
    assert!(!rows.is_empty(), "{case:#}");
    for row in rows {
        assert!(row["what"].is_string() && row["unit"].is_string(), "{row:#}");
        let value = row["value"]
            .as_f64()
            .unwrap_or_else(|| panic!("no value: {row:#}"));
        assert!(value >= 0.0, "{row:#}");
        if !row["floor"].is_null() {
            let floor = row["floor"]["value"]
                .as_f64()
                .unwrap_or_else(|| panic!("no floor: {row:#}"));
            let ratio = row["ratio"]
                .as_f64()
                .unwrap_or_else(|| panic!("no ratio: {row:#}"));
            assert!((ratio * floor - value).abs() <= value * 1e-6, "{row:#}");
            assert!(row["floor"]["what"].is_string(), "{row:#}");
        }
        assert_eq!(row["bar"].is_null(), row.get("met").is_none(), "{row:#}");
    }
}

#[test]
fn the_embedded_backend_needs_no_server_and_says_what_it_left_out() {
    let output = output(&["bench", "--quick", "--json", "pair", "reentry", "memory"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report = report(&output);
    assert_eq!(report["backend"], "embedded");
    assert_eq!(report["quick"], true);
    let [pair, reentry, memory] = [0, 1, 2].map(|at| &report["cases"][at]);
    assert_eq!(
        [&pair["case"], &reentry["case"], &memory["case"]],
        ["pair", "reentry", "memory"]
    );
    assert_rows(pair);
    assert_rows(reentry);
    assert_eq!(pair["rows"][0]["what"], "write pair");
    assert_eq!(pair["rows"][0]["unit"], "µs");
    assert_eq!(pair["rows"][0]["bar"]["at_most"], 2.0);
    assert!(memory["rows"].as_array().is_some_and(Vec::is_empty), "{memory:#}");
    assert!(
        memory["skipped"]
            .as_str()
            .is_some_and(|why| why.contains("--redis")),
        "{memory:#}"
    );
}

#[test]
fn on_a_server_every_case_is_measured_and_drawn_and_nothing_is_left_behind() {
    let server = RedisServer::start();
    server.cli(&["SET", "somebody's", "own"]);
    let directory = tempfile::tempdir().expect("the system has a directory for temporary files");
    let plot = directory.path().join("bench.svg");
    let plot = plot.to_str().expect("temporary directories have plain names");
    let output = output(&[
        "bench",
        "--quick",
        "--json",
        "--redis",
        &server.url(),
        "--plot",
        plot,
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report = report(&output);
    let cases = report["cases"].as_array().expect("cases are an array");
    let names: Vec<_> = cases.iter().filter_map(|case| case["case"].as_str()).collect();
    assert_eq!(
        names,
        [
            "pair",
            "throughput",
            "handoff",
            "readers",
            "fair",
            "renew",
            "memory",
            "reentry",
            "striped"
        ]
    );
    for case in cases {
        assert!(case["skipped"].is_null(), "{case:#}");
        assert_rows(case);
    }
    let svg = fs::read_to_string(plot).expect("the plot was written");
    for words in ["<svg", "pair: write pair", "throughput", "in line", "</svg>"] {
        assert!(svg.contains(words), "no {words:?} in the plot");
    }
    assert_eq!(server.keys(), ["somebody's"]);
}

#[test]
fn without_json_there_is_a_table_with_units_and_bars() {
    let output = output(&["bench", "--quick", "pair", "fair"]);
    let out = text(&output.stdout);
    for words in [
        "write pair",
        "µs",
        "≤ 2 µs",
        "16 clients, longest wait",
        "ms",
        "≤ 3 ×",
        "tokio::sync::RwLock",
    ] {
        assert!(out.contains(words), "no {words:?} in:\n{out}");
    }
    assert_eq!(output.status.code(), Some(0));
}

/// Whether bars are met depends on the machine; that the status, the lines and the report agree does not.
#[test]
fn check_gives_the_status_that_the_report_tells() {
    // An unoptimised build is slower than any bar; an optimised one is not.
    for arguments in [&["pair"][..], &["fair"], &["handoff"]] {
        let arguments = [&["bench", "--quick", "--json", "--check"], arguments].concat();
        let output = output(&arguments);
        let report = report(&output);
        let missed = report["missed"].as_array().expect("missed is an array");
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(i32::from(!missed.is_empty())), "{err}");
        assert_eq!(err.matches("✗ missed: ").count(), missed.len(), "{err}");
        assert!(err.contains(&format!("{} missed", missed.len())), "{err}");
        for what in missed.iter().filter_map(Value::as_str) {
            assert!(
                err.contains(&what.replace(": ", ", ")),
                "no line for {what:?} in:\n{err}"
            );
        }
    }
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    let server = RedisServer::start();
    for (case, seconds, when, key) in [
        ("handoff", "600", "somebody waits in line", ":queue"),
        // One of twenty thousand. They come when all tasks have had their share of the time.
        (
            "throughput",
            "10",
            "redis-benchmark has its names",
            "/numbered/000000000007}",
        ),
    ] {
        let directory = tempfile::tempdir().expect("the system has a directory for temporary files");
        let err = directory.path().join("err");
        let url = server.url();
        let mut command = relatch(&["bench", case, "--seconds", seconds, "--redis", &url]);
        command
            .stdout(Stdio::null())
            .stderr(File::create(&err).expect("files can be written"));
        let mut process = Process::spawn(command).expect("the command can be started");
        eventually_blocking(BOUND * 3, when, || {
            server.keys().iter().any(|found| found.ends_with(key))
        });
        process.signal(Signal::INT);
        let mut status = None;
        eventually_blocking(BOUND, "the bench ends", || {
            status = process.ended();
            status.is_some()
        });
        let err = fs::read_to_string(err).expect("what was written can be read");
        assert_eq!(status.and_then(|status| status.code()), Some(2), "{err}");
        assert!(err.contains("interrupted: nothing was left behind"), "{err}");
        assert_eq!(server.keys(), [""; 0]);
    }
}

/// What measures and what looks goes wherever a client does.
#[test]
fn it_measures_behind_tls_and_sentinels_and_in_a_cluster() {
    let (files, port) = (Certificates::new("cache.example"), free_port());
    let arguments = files.arguments(port, false);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let secured = RedisServer::start_with(&arguments);
    let (watched, cluster) = (Watched::start(), RedisCluster::start(3));
    for url in [
        format!("rediss://127.0.0.1:{port}?{}", files.parameters(false)),
        watched.url(),
        cluster.url(),
    ] {
        let cases = [
            "bench",
            "pair",
            "handoff",
            "throughput",
            "memory",
            "--quick",
            "--json",
        ];
        let output = output(&[cases.as_slice(), &["--redis", &url]].concat());
        let report = report(&output);
        assert_eq!(output.status.code(), Some(0), "{url}: {}", text(&output.stderr));
        for case in report["cases"].as_array().expect("cases are an array") {
            assert_rows(case);
        }
        let output = self::output(&["ls", "--json", "--redis", &url]);
        assert_eq!(output.status.code(), Some(0), "{url}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "", "{url}: nothing is left");
    }
    drop(secured);
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
    assert_could_not_run(&["bench", "pear"], "possible values: pair, throughput");
    assert_could_not_run(&["bench", "--seconds", "0"], "1..=600");
    assert_could_not_run(&["bench", "--redis", "nonsense"], "redis://");
    let url = format!("redis://127.0.0.1:{}", free_port());
    assert_could_not_run(&["bench", "--redis", &url], "without --redis none is needed");
    assert_could_not_run(
        &["bench", "--quick", "pair", "--plot", "no/such/folder/plot.svg"],
        "no/such/folder/plot.svg can't be written",
    );
    assert_could_not_run(&["bench-worker"], "for `relatch bench` to start");
}

#[test]
fn help_names_the_cases_and_the_statuses() {
    let out = text(&output(&["bench", "--help"]).stdout);
    for words in ["throughput", "handoff", "--check", "Exit status: 0 "] {
        assert!(out.contains(words), "no {words:?} in:\n{out}");
    }
    assert!(!text(&output(&["--help"]).stdout).contains("bench-worker"));
}
