//! What the notes of a job say, by rules that are the same for all: who overlapped, who waited for how long, how long a handoff took.
//!
//! The times are a subject's own process', taken after it was told that it is in and before it gives back. So what is counted as an
//! overlap was one: each of two holders believed to be alone at the same moment.

use std::collections::HashMap;

use crate::job::{Job, Mode, Turn};

/// How many turns began while somebody was in who excludes them. The turns are sorted by when they were granted.
pub(crate) fn overlaps(job: &Job, turns: &[Turn]) -> usize {
    // By name: until when somebody wrote, and somebody read.
    let mut inside: HashMap<&str, [u64; 2]> = HashMap::new();
    let mut count = 0;
    for turn in turns.iter().filter(|turn| turn.granted > 0) {
        let Some(worker) = job.workers.get(turn.worker) else {
            continue;
        };
        let [writing, reading] = inside.entry(&worker.name).or_default();
        let excluded = match worker.mode {
            Mode::Read => *writing,
            Mode::Write => (*writing).max(*reading),
        };
        count += usize::from(turn.granted < excluded);
        let mine = match worker.mode {
            Mode::Read => reading,
            Mode::Write => writing,
        };
        *mine = (*mine).max(turn.leaving);
    }
    count
}

/// From the call that gives back to the next who is in and had asked before, in milliseconds. Of one name, writers only.
pub(crate) fn handoffs(turns: &[Turn]) -> Vec<f64> {
    let granted: Vec<&Turn> = turns.iter().filter(|turn| turn.granted > 0).collect();
    granted
        .iter()
        .zip(granted.iter().skip(1))
        .filter(|(from, to)| to.asked < from.leaving && to.worker != from.worker)
        .map(|(from, to)| millis(to.granted.saturating_sub(from.leaving)))
        .collect()
}

/// How long they waited, also those in vain, in milliseconds.
pub(crate) fn waits<'a>(turns: impl IntoIterator<Item = &'a Turn>) -> Vec<f64> {
    let wait = |turn: &Turn| {
        let until = if turn.granted > 0 { turn.granted } else { turn.left };
        millis(until.saturating_sub(turn.asked))
    };
    turns.into_iter().map(wait).collect()
}

pub(crate) fn in_vain<'a>(turns: impl IntoIterator<Item = &'a Turn>) -> usize {
    turns.into_iter().filter(|turn| turn.granted == 0).count()
}

/// From the first call to the last answer, in seconds.
pub(crate) fn lasted(turns: &[Turn]) -> f64 {
    let begun = turns.iter().map(|turn| turn.asked).min().unwrap_or(0);
    let ended = turns.iter().map(|turn| turn.left).max().unwrap_or(0);
    ended.saturating_sub(begun) as f64 / 1e9
}

pub(crate) fn millis(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Worker;

    fn turn(worker: usize, asked: u64, granted: u64, leaving: u64) -> Turn {
        Turn {
            worker,
            asked,
            granted,
            leaving,
            left: leaving + 1,
        }
    }

    fn job(modes: &[Mode]) -> Job {
        Job::new(modes.iter().map(|mode| Worker::new(0, "name", *mode)).collect())
    }

    #[test]
    fn a_writer_overlaps_with_anybody_and_a_reader_with_writers_only() {
        let [read, write] = [Mode::Read, Mode::Write];
        let together = [turn(0, 1, 10, 30), turn(1, 1, 20, 40)];
        assert_eq!(overlaps(&job(&[write, write]), &together), 1);
        assert_eq!(overlaps(&job(&[write, read]), &together), 1);
        assert_eq!(overlaps(&job(&[read, write]), &together), 1);
        assert_eq!(overlaps(&job(&[read, read]), &together), 0);
        let in_turn = [turn(0, 1, 10, 30), turn(1, 1, 30, 40)];
        assert_eq!(overlaps(&job(&[write, write]), &in_turn), 0);
    }

    #[test]
    fn names_do_not_exclude_each_other_and_who_was_not_in_overlaps_with_nobody() {
        let mut two = job(&[Mode::Write, Mode::Write]);
        two.workers[1].name = "another".into();
        assert_eq!(overlaps(&two, &[turn(0, 1, 10, 30), turn(1, 1, 20, 40)]), 0);
        let waited = [turn(1, 1, 0, 40), turn(0, 1, 10, 30)];
        assert_eq!(overlaps(&job(&[Mode::Write, Mode::Write]), &waited), 0);
    }

    #[test]
    fn a_long_hold_is_seen_past_a_short_one() {
        let modes = [Mode::Read, Mode::Read, Mode::Write];
        let turns = [turn(0, 1, 10, 100), turn(1, 1, 20, 30), turn(2, 1, 50, 60)];
        assert_eq!(overlaps(&job(&modes), &turns), 1);
    }

    #[test]
    fn a_handoff_goes_to_somebody_who_waited() {
        let ms = 1_000_000;
        let turns = [
            turn(0, 0, ms, 10 * ms),
            turn(1, 2 * ms, 12 * ms, 20 * ms),
            // Asked when it was free.
            turn(0, 21 * ms, 22 * ms, 23 * ms),
        ];
        assert_eq!(handoffs(&turns), [2.0]);
        assert_eq!(waits(&turns), [1.0, 10.0, 1.0]);
    }
}
