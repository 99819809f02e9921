//! What a run has covered and what came of it, as the tables of `docs/histories.md`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use relatch::Mode;

use super::judge::Updates;
use super::nemesis::Kind;
use super::run::{Run, WORKERS};

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let judgement = &self.judgement;
        writeln!(f, "### {}\n", self.plan.title)?;
        writeln!(
            f,
            "relatch {}, server {}, {WORKERS} processes at a time, {} in all; seed {}; {} faults in {:.0} s.\n",
            env!("CARGO_PKG_VERSION"),
            self.server_version,
            self.processes,
            self.plan.seed,
            self.faults.len(),
            self.lasted.as_secs_f64(),
        )?;
        let holds = |mode| judgement.holds.get(&mode).copied().unwrap_or_default();
        let mut rows = vec![
            ("requests for a hold", judgement.requests.to_string()),
            (
                "holds granted: write, upgradable, read",
                format!(
                    "{}, {}, {}",
                    holds(Mode::Write),
                    holds(Mode::Upgradable),
                    holds(Mode::Read)
                ),
            ),
            (
                "holds that were lost, as their guards said",
                judgement.lost_holds.to_string(),
            ),
            (
                "requests that failed",
                match judgement.failures.is_empty() {
                    true => "none".to_owned(),
                    false => {
                        let failures = judgement.failures.iter();
                        let failures: Vec<_> =
                            failures.map(|(why, count)| format!("{count} {why}")).collect();
                        failures.join(", ")
                    }
                },
            ),
            ("reads and writes of what is guarded", judgement.calls.to_string()),
            (
                "holds that overlapped though they exclude each other",
                judgement.overlaps.to_string(),
            ),
            (
                "values that changed under a reader",
                judgement.changed_under_reader.to_string(),
            ),
        ];
        for (title, updates) in [
            ("without fences checked", judgement.unchecked),
            ("with fences checked", judgement.checked),
        ] {
            rows.push((title, describe(updates)));
        }
        rows.push((
            "waited for a hold: median, 99 %, longest",
            quantiles(&judgement.waits),
        ));
        rows.push((
            "the same after the last fault, everybody at once",
            quantiles(&judgement.last_waits),
        ));
        rows.push((
            "left on the server at the end",
            match self.left_behind.len() {
                0 => "nothing".to_owned(),
                _ => self.left_behind.join(", "),
            },
        ));
        rows.push(("violations", judgement.violations.len().to_string()));
        writeln!(f, "| | |\n|---|---|")?;
        for (what, value) in rows {
            writeln!(f, "| {what} | {value} |")?;
        }

        writeln!(
            f,
            "\n| fault | times | struck, until the next grant after it: median, longest |\n|---|---|---|"
        )?;
        let mut kinds: BTreeMap<Kind, (u64, Vec<Duration>)> = BTreeMap::new();
        for fault in &self.faults {
            kinds.entry(fault.kind).or_default().0 += 1;
        }
        for (fault, took) in &self.recoveries {
            kinds.entry(fault.kind).or_default().1.push(*took);
        }
        for (kind, (times, mut took)) in kinds {
            took.sort_unstable();
            let recovery = match took.last() {
                Some(longest) => format!("{}, {}", short(took[took.len() / 2]), short(*longest)),
                None => String::new(),
            };
            writeln!(f, "| {} | {times} | {recovery} |", kind.words())?;
        }
        Ok(())
    }
}

fn describe(updates: Updates) -> String {
    let share = 100.0 * updates.lost as f64 / updates.acknowledged.max(1) as f64;
    format!(
        "{} updates acknowledged, **{} lost ({share:.1} %)**, {} refused as stale; {}",
        updates.acknowledged,
        updates.lost,
        updates.refused,
        match updates.linearizable {
            true => "linearizable",
            false => "not linearizable",
        }
    )
}

fn quantiles(sorted: &[Duration]) -> String {
    let at = |part: f64| {
        let last = sorted.len().saturating_sub(1);
        let place = (last as f64 * part).round() as usize;
        short(sorted.get(place).copied().unwrap_or_default())
    };
    format!("{}, {}, {}", at(0.5), at(0.99), at(1.0))
}

fn short(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
