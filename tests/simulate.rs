//! The simulation of the whole client: a slice of its seeds, that a seed is one run, and that it has teeth.
#![cfg(feature = "cli")]

mod support;

use std::ffi::OsStr;
use std::process::Stdio;

use relatch::simulate::{Fault, Flaw, Options, run};
use serde_json::Value;
use support::child::command;

#[test]
fn every_promise_is_kept_in_a_slice_of_the_seeds() {
    let mut faults = std::collections::BTreeSet::new();
    for seed in 1..=SLICE {
        let run = run(seed, Options::default());
        assert_eq!(
            run.broken, None,
            "seed {seed}; see: cargo relatch simulate --from {seed} --seeds 1 --trace"
        );
        faults.extend(run.faults.into_keys());
    }
    let all: std::collections::BTreeSet<Fault> = Fault::ALL.into_iter().collect();
    assert_eq!(faults, all, "each kind of fault was made");
}

#[test]
fn a_seed_is_one_run_whether_or_not_it_is_written_down() {
    for seed in 1000..1000 + SLICE / 4 {
        let plain = run(seed, Options::default());
        let record = Options {
            record: true,
            ..Options::default()
        };
        let recorded = run(seed, record);
        assert_eq!(plain.hash, recorded.hash, "seed {seed}");
        assert_eq!(plain.tally, recorded.tally, "seed {seed}");
        assert!(plain.trace.is_empty() && !recorded.trace.is_empty());
    }
}

#[test]
fn a_seed_is_the_same_run_in_another_process() {
    let hash = || {
        let output = command(OsStr::new(env!("CARGO_BIN_EXE_relatch")))
            .args(["simulate", "--from", "2000", "--seeds", "6", "--json"])
            .output()
            .expect("the command can be started");
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("the result is JSON");
        assert_eq!(report["seeds"], 6);
        assert!(
            report["hash"].is_string(),
            "a number of 64 bits is rounded by many readers"
        );
        report["hash"].clone()
    };
    assert_eq!(hash(), hash());
}

#[test]
fn each_flaw_made_on_purpose_is_found_soon_by_the_promise_that_it_breaks() {
    for flaw in Flaw::ALL {
        let options = Options {
            flaw: Some(flaw),
            ..Options::default()
        };
        let found = (1..=SOON).find_map(|seed| run(seed, options).broken.map(|broken| (seed, broken)));
        let Some((seed, broken)) = found else {
            panic!("{flaw:?} is not found in {SOON} seeds");
        };
        println!("{flaw:?}: seed {seed}: {broken}");
        assert!(broken.contains(flaw.breaks()), "{flaw:?}: seed {seed}: {broken}");
    }
}

#[test]
fn seeds_that_have_found_something_are_kept() {
    for (seed, found) in KEPT {
        assert_eq!(
            run(*seed, Options::default()).broken,
            None,
            "seed {seed}: {found}"
        );
    }
}

#[test]
fn a_trace_is_of_one_seed_and_no_json() {
    let (code, said) = simulate(&["--trace", "--from", "3000"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("\n1 seeds from 3000 in "), "{said}");
    assert_eq!(simulate(&["--trace", "--json"]).0, Some(2));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = command(OsStr::new(env!("CARGO_BIN_EXE_relatch")))
        .args(["simulate", "--trace", "--from", "75"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command can be started");
    // More than a pipe takes in, so that it can't be done before this.
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_broken_promise_is_reported_with_all_that_led_to_it_and_how_to_see_it_again() {
    let (code, said) = simulate(&["--flaw", "releases-forgotten", "--seeds", "20"]);
    assert_eq!(code, Some(1), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    let broken = lines
        .iter()
        .find_map(|line| line.strip_prefix("BROKEN in seed "))
        .expect("it says what was broken");
    let (seed, what) = broken.split_once(": ").expect("a seed, and what was broken");
    assert!(what.starts_with(Flaw::ReleasesForgotten.breaks()), "{said}");
    assert!(
        lines.iter().any(|line| line.contains(" server    client ")),
        "a trace: {said}"
    );
    assert!(
        lines.iter().any(|line| line.contains(" ms a column; ")),
        "a timeline: {said}"
    );
    let again = format!("again: relatch simulate --from {seed} --trace --flaw releases-forgotten");
    assert_eq!(lines.last(), Some(&again.as_str()), "{said}");

    // What it says to do shows the same, from the beginning.
    let args: Vec<&str> = again.split(' ').skip(3).collect();
    let (code, said) = simulate(&args);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.starts_with(&format!("   0.000 fault     seed {seed}\n")),
        "{said}"
    );
    assert!(
        said.contains(&format!("BROKEN in seed {seed}: {what}\n")),
        "{said}"
    );
}

/// How the command ends, and what it says.
fn simulate(args: &[&str]) -> (Option<i32>, String) {
    let output = command(OsStr::new(env!("CARGO_BIN_EXE_relatch")))
        .arg("simulate")
        .args(args)
        .output()
        .expect("the command can be started");
    let said = String::from_utf8(output.stdout).expect("it is text");
    (output.status.code(), said)
}

/// What was found once, and by which seed. What a seed does hangs on what is drawn from it: after a change to the plan, the world or the
/// users it is another run, and no worse than any other.
const KEPT: &[(u64, &str)] = &[
    (
        100_730,
        "a stale replica granted a write again whose fence somebody else had had since, and its owner re-entered with it",
    ),
    (
        203_779,
        "who was told a fence last re-enters with it, on a replica that was behind",
    ),
];

/// How many seeds are run here. For many more: `cargo relatch simulate`.
const SLICE: u64 = 60;
/// How many seeds a flaw is given.
const SOON: u64 = 120;
