//! What a demo found: as a table with a verdict, or as JSON.

use std::fmt;
use std::process::ExitStatus;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, TableComponent, presets};
use indicatif::{DecimalBytes, HumanCount};
use serde::Serialize;

use super::referee::{Acquisitions, Counts};
use super::worker::Workers;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) backend: &'static str,
    pub(crate) seconds: f64,
    pub(crate) tree: String,
    pub(crate) folders: usize,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// In each process.
    pub(crate) workers: Workers,
    #[serde(flatten)]
    pub(crate) counts: Counts,
    pub(crate) processes: Vec<Process>,
    /// What the server still had at the end.
    pub(crate) left_behind: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Process {
    pub(crate) worker: usize,
    pub(crate) pid: Option<u32>,
    pub(crate) acquired: u64,
    pub(crate) last_acquired_s: Option<f64>,
    pub(crate) ending: Ending,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    Finished,
    /// From outside: no fault of the lock.
    Killed,
    Failed(String),
    /// It did not end when it was told to.
    #[default]
    Stuck,
}

impl Ending {
    pub(crate) fn of(status: ExitStatus) -> Self {
        #[cfg(unix)]
        {
            use std::os::unix::process::ExitStatusExt as _;
            // HUP, INT, KILL, TERM: those that somebody sends.
            if matches!(status.signal(), Some(1 | 2 | 9 | 15)) {
                return Self::Killed;
            }
        }
        match status.success() {
            true => Self::Finished,
            false => Self::Failed(status.to_string()),
        }
    }
}

/// One promise: whether it was kept, its name, and what that means or what was seen.
struct Finding {
    kept: bool,
    promise: &'static str,
    detail: String,
}

impl Report {
    fn findings(&self) -> Vec<Finding> {
        let counts = &self.counts;
        let finding = |promise, broken: Option<String>, kept: &str| Finding {
            kept: broken.is_none(),
            promise,
            detail: broken.unwrap_or_else(|| kept.into()),
        };
        let mut findings = vec![
            finding(
                "no overlap",
                some_of(&counts.overlaps),
                "whoever was inside was inside by right, at every moment",
            ),
            finding(
                "no stale write accepted",
                some_of(&counts.fence_faults),
                "every fence was greater than the one before, and the store took no late write",
            ),
            finding(
                "nothing left behind",
                self.left_behind.clone(),
                "at the end nobody held and nobody waited",
            ),
        ];
        let failed: Vec<_> = self.processes.iter().filter_map(Process::failure).collect();
        if !failed.is_empty() {
            findings.push(finding("everybody finished", some_of(&failed), ""));
        }
        findings
    }

    pub(crate) fn passed(&self) -> bool {
        self.findings().iter().all(|finding| finding.kept)
    }

    fn killed(&self) -> usize {
        let killed = |process: &&Process| process.ending == Ending::Killed;
        self.processes.iter().filter(killed).count()
    }

    pub(crate) fn json(&self) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Json<'a> {
            passed: bool,
            verdict: serde_json::Map<String, serde_json::Value>,
            killed: usize,
            #[serde(flatten)]
            report: &'a Report,
        }
        let verdict = |finding: Finding| (finding.promise.replace(' ', "_"), finding.kept.into());
        serde_json::to_string_pretty(&Json {
            passed: self.passed(),
            verdict: self.findings().into_iter().map(verdict).collect(),
            killed: self.killed(),
            report: self,
        })
    }
}

impl Process {
    fn failure(&self) -> Option<String> {
        match &self.ending {
            Ending::Finished | Ending::Killed => None,
            Ending::Failed(why) => Some(format!("worker {}: {why}", self.worker)),
            Ending::Stuck => Some(format!("worker {} did not end when it was told to", self.worker)),
        }
    }
}

/// The first few say enough.
fn some_of(faults: &[String]) -> Option<String> {
    const FEW: usize = 3;
    let (first, rest) = faults.split_at(faults.len().min(FEW));
    match rest.len() {
        _ if first.is_empty() => None,
        0 => Some(first.join("; ")),
        rest => Some(format!("{}; and {rest} more", first.join("; "))),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        let place = match (self.backend, self.processes.len()) {
            ("embedded", _) => "in this process".into(),
            (_, 1) => "on Redis, from one process".into(),
            (_, processes) => format!("on Redis, from {processes} processes"),
        };
        writeln!(f, "relatch demo, {:.1} s {place}", self.seconds)?;
        let files = some(self.files, "file");
        let folders = some(self.folders as u64, "folder");
        writeln!(
            f,
            "{}: {files} in {folders}, {}\n",
            self.tree,
            DecimalBytes(self.bytes)
        )?;

        let mut modes = table([
            "mode",
            "acquired",
            "re-entered",
            "waited > 1 ms",
            "mean of these",
            "longest wait",
        ]);
        for (mode, of) in [
            ("read", &counts.read),
            ("upgradable", &counts.upgradable),
            ("write", &counts.write),
        ] {
            modes.add_row([
                mode.into(),
                HumanCount(of.acquired).to_string(),
                HumanCount(of.reentered).to_string(),
                HumanCount(of.waited).to_string(),
                mean_wait(of).map_or("-".into(), ms),
                if of.acquired == 0 {
                    "-".into()
                } else {
                    ms(of.longest)
                },
            ]);
        }
        align(&mut modes);
        writeln!(f, "{modes}\n")?;

        let mut facts = table([]);
        let mut fact = |what: &str, value: String| {
            facts.add_row([what.to_owned(), value]);
        };
        fact("deepest re-entry", some(counts.deepest_reentry, "level"));
        fact(
            "upgrades, downgrades",
            format!("{}, {}", counts.upgrades, counts.downgrades),
        );
        fact(
            "fences issued",
            match counts.fences_issued {
                0 => "none".into(),
                issued => format!(
                    "{issued}, growing from {} to {}",
                    counts.first_fence, counts.last_fence
                ),
            },
        );
        fact("writes accepted", HumanCount(counts.writes_accepted).to_string());
        fact(
            "stale writes refused",
            HumanCount(counts.stale_writes_refused).to_string(),
        );
        fact(
            "questions answered",
            HumanCount(counts.questions_answered).to_string(),
        );
        fact(
            "folders walked",
            format!(
                "{}, {} of them changed since the last refresh",
                HumanCount(counts.folders_walked),
                HumanCount(counts.folders_changed)
            ),
        );
        writeln!(f, "{facts}\n")?;

        if self.backend == "redis" {
            let mut processes = table(["process", "pid", "acquired", "last acquired", "ended"]);
            for process in &self.processes {
                processes.add_row([
                    format!("worker {}", process.worker),
                    process.pid.map_or("-".into(), |pid| pid.to_string()),
                    HumanCount(process.acquired).to_string(),
                    process
                        .last_acquired_s
                        .map_or("-".into(), |s| format!("at {s:.1} s")),
                    match process.ending {
                        Ending::Finished => "when told to",
                        Ending::Killed => "was killed",
                        Ending::Failed(_) => "failed",
                        Ending::Stuck => "did not",
                    }
                    .into(),
                ]);
            }
            align(&mut processes);
            writeln!(f, "{processes}")?;
            match self.killed() {
                0 => {}
                killed => {
                    let (all, was) = (self.processes.len(), if killed == 1 { "was" } else { "were" });
                    writeln!(f, "{killed} of {all} processes {was} killed")?;
                }
            }
            writeln!(f)?;
        }

        for Finding {
            kept,
            promise,
            detail,
        } in self.findings()
        {
            let mark = if kept { '✓' } else { '✗' };
            writeln!(f, "{mark} {promise}: {detail}")?;
        }
        let broken = self.counts.overlaps.len() + self.counts.fence_faults.len() > 0;
        f.write_str(match (self.passed(), broken) {
            (true, _) => "The lock kept its promises.",
            (false, true) => {
                "The lock broke a promise. That must not happen: please report it, with all of the above."
            }
            (false, false) => "The demo did not end as it should: see above.",
        })
    }
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    if N > 0 {
        table.set_style(TableComponent::HeaderLines, '─');
        table.set_style(TableComponent::MiddleHeaderIntersections, '─');
        table.set_header(header);
    }
    table
}

/// Numbers to the right of their names.
fn align(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// Of those who waited.
fn mean_wait(of: &Acquisitions) -> Option<Duration> {
    of.waiting.checked_div(u32::try_from(of.waited).ok()?)
}

fn some(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {what}{plural}", HumanCount(count))
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
