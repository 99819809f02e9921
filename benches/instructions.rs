//! Counts the client's instructions on the hot paths, by valgrind, and holds them against `benches/instructions.json`. A slip is seen
//! whatever else the machine does.
//!
//! - `cargo bench --bench instructions` counts and compares; a path that grew by more than its tolerance is a failure.
//! - `cargo bench --bench instructions -- --bless` counts and writes the file anew.
//! - `cargo test` runs each path a few times and counts nothing.
//!
//! Each path is run with few steps and with many, each time as a process of its own under callgrind; the difference, by the step, has nothing of
//! the set-up in it. On Redis the steps are pairs on a real server, which is not counted: what is, is the client from the call to the
//! guard, so encoding, sending, receiving, decoding.

mod paths;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::Path as File;
use std::process::{Command, ExitCode};

use paths::{EMBEDDED, Steps};
use relatch::Relatch;
use support::RedisServer;
use support::child::command;

const ENCODE: [&str; 2] = ["encode a pair", "encode a renewal of 100 names"];
const REDIS: [&str; 2] = ["redis write pair", "redis read pair"];
const FEW: u32 = 500;
const MANY: u32 = 2500;
/// In percent. On Redis how often a task on a connection is woken depends on the kernel, too.
const TOLERANCE: [(&str, f64); 3] = [("embedded", 3.0), ("encode", 3.0), ("redis", 4.0)];
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.json");

type Counts = BTreeMap<String, f64>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
    if let [run, path, steps, url] = arguments.as_slice()
        && run == "--run"
    {
        work(path, steps.parse().expect("a number of steps"), url);
        return ExitCode::SUCCESS;
    }
    let server = RedisServer::start();
    let names = EMBEDDED
        .map(|(name, _)| name)
        .into_iter()
        .chain(ENCODE)
        .chain(REDIS);
    if !has("--bench") {
        for name in names {
            work(name, 3, &server.url());
        }
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("instructions: valgrind is not on the PATH; install its package, which has that name");
        return ExitCode::FAILURE;
    }
    let counts: Counts = names
        .map(|name| {
            let count = |steps| count(name, steps, &server.url());
            (
                name.to_owned(),
                ((count(MANY) - count(FEW)) / f64::from(MANY - FEW)).round(),
            )
        })
        .collect();
    if has("--bless") {
        let text = serde_json::to_string_pretty(&counts).expect("names and numbers") + "\n";
        std::fs::write(BASELINE, text).expect("the baseline can be written");
    }
    let baseline = std::fs::read_to_string(BASELINE).expect("the baseline is part of the package");
    let baseline: Counts = serde_json::from_str(&baseline).expect("the baseline is JSON");
    let lines: Vec<(bool, String)> = counts
        .iter()
        .map(|(name, count)| judge(name, *count, &baseline))
        .collect();
    for (_, line) in &lines {
        println!("{line}");
    }
    match lines.iter().all(|(good, _)| *good) {
        true => ExitCode::SUCCESS,
        false => {
            eprintln!("instructions: a path grew. If it must: cargo bench --bench instructions -- --bless");
            ExitCode::FAILURE
        }
    }
}

/// Whether that many are all right, and a line that says so. What became less is said, too: the baseline is due then.
fn judge(name: &str, count: f64, baseline: &Counts) -> (bool, String) {
    let Some(then) = baseline.get(name) else {
        return (false, format!("✗ {name}: {count} instructions, and no baseline"));
    };
    let tolerance = TOLERANCE.iter().find(|(kind, _)| name.starts_with(kind));
    let tolerance = tolerance.map_or(0.0, |(_, percent)| *percent);
    let change = 100.0 * (count / then - 1.0);
    let good = change <= tolerance;
    let mark = if good { '✓' } else { '✗' };
    (
        good,
        format!(
            "{mark} {name}: {count} instructions a step, {change:+.1} % of {then}, at most +{tolerance} %"
        ),
    )
}

fn count(name: &str, steps: u32, url: &str) -> f64 {
    let this = std::env::current_exe().expect("this program knows where it is");
    let directory = tempfile::tempdir().expect("the system has a directory for temporary files");
    let file = directory.path().join("counts");
    let mut valgrind = command("valgrind");
    valgrind
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(this)
        .args(["--run", name, &steps.to_string(), url]);
    let output = valgrind.output().expect("valgrind can be started");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    total(&file)
}

fn total(file: &File) -> f64 {
    let text = std::fs::read_to_string(file).expect("callgrind wrote its counts");
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("summary: ")?.trim().parse().ok());
    total.expect("callgrind tells a total")
}

fn work(name: &str, steps: u32, url: &str) {
    if let Some((_, path)) = EMBEDDED.iter().find(|(known, _)| *known == name) {
        let mut path = Steps::new(*path);
        for _ in 0..steps {
            path.step();
        }
        return;
    }
    if let Some(at) = ENCODE.iter().position(|known| *known == name) {
        let encoding = &relatch::CallEncoding::of(100)[at];
        for _ in 0..steps {
            std::hint::black_box(encoding.encode());
        }
        return;
    }
    assert!(REDIS.contains(&name), "{name:?} is no path");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be started");
    runtime.block_on(async {
        // Under valgrind everything takes its time.
        let patient = std::time::Duration::from_secs(30);
        let builder = Relatch::builder()
            .lease(patient * 20)
            .response_timeout(patient)
            .connect_timeout(patient);
        let client = builder.url(url).connect().await.expect("the server was started");
        let lock = client.rwlock(name).expect("it is a name");
        for _ in 0..steps {
            if name.contains("write") {
                let guard = lock.write().await.expect("it is free");
                guard.release().await.expect("it is held");
            } else {
                let guard = lock.read().await.expect("it is free");
                guard.release().await.expect("it is held");
            }
        }
        client.close().await.expect("the server is still there");
    });
}
