//! What happened, in order: hashed always, written down when somebody will read it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher as _};

/// Whose event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Lane {
    World,
    Server,
    Client(usize),
    Task(usize, usize),
}

impl std::fmt::Display for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Lane::World => "fault".to_owned(),
            Lane::Server => "server".to_owned(),
            Lane::Client(client) => format!("client {client}"),
            Lane::Task(client, task) => format!("task {client}.{task}"),
        };
        f.pad(&text)
    }
}

/// What a lane shows from a moment on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Mark {
    Idle,
    Waiting,
    Read,
    Upgradable,
    Write,
    /// The hold is lost, the guard still there.
    Lost,
    Paused,
    Gone,
    /// Of the world: something was done to it.
    Fault,
}

impl Mark {
    fn letter(self) -> char {
        match self {
            Mark::Idle => ' ',
            Mark::Waiting => '.',
            Mark::Read => 'r',
            Mark::Upgradable => 'u',
            Mark::Write => 'W',
            Mark::Lost => 'x',
            Mark::Paused => '=',
            Mark::Gone => '#',
            Mark::Fault => '!',
        }
    }

    fn word(self) -> &'static str {
        match self {
            Mark::Idle => "",
            Mark::Waiting => "wait",
            Mark::Read => "read",
            Mark::Upgradable => "upgradable",
            Mark::Write => "write",
            Mark::Lost => "lost",
            Mark::Paused => "paused",
            Mark::Gone => "gone",
            Mark::Fault => "fault",
        }
    }

    /// Of several within one column, the one that is shown.
    fn weight(self) -> u8 {
        match self {
            Mark::Idle => 0,
            Mark::Waiting => 1,
            Mark::Paused | Mark::Gone => 2,
            Mark::Read => 3,
            Mark::Upgradable => 4,
            Mark::Write => 5,
            Mark::Lost => 6,
            Mark::Fault => 7,
        }
    }
}

/// What a lane showed for a while.
#[derive(Clone, Debug)]
pub struct Interval {
    /// Whose: a task, a client, or the world.
    pub lane: String,
    /// `wait`, `read`, `upgradable`, `write`, `lost`, `paused`, `gone` or `fault`.
    pub kind: &'static str,
    /// The name that is waited for or held.
    pub name: String,
    /// On the simulated clock.
    pub from_ms: u64,
    /// See [`from_ms`](Self::from_ms).
    pub until_ms: u64,
}

#[derive(Default)]
pub(super) struct Log {
    hasher: DefaultHasher,
    pub(super) events: u64,
    recording: Option<Recording>,
}

#[derive(Default)]
struct Recording {
    events: Vec<(u64, Lane, String)>,
    /// With the name that it is about.
    marks: BTreeMap<Lane, Vec<(u64, Mark, String)>>,
}

/// How many events of a failed run are shown, and how wide its timeline is.
const SHOWN: usize = 400;
const COLUMNS: u64 = 96;

impl Log {
    pub(super) fn new(record: bool) -> Self {
        Self {
            recording: record.then(Recording::default),
            ..Self::default()
        }
    }

    /// `digest` is what must be the same in every run of a seed.
    pub(super) fn event(&mut self, at_ms: u64, lane: Lane, digest: impl Hash, text: impl FnOnce() -> String) {
        self.events += 1;
        (at_ms, lane, digest).hash(&mut self.hasher);
        if let Some(recording) = &mut self.recording {
            recording.events.push((at_ms, lane, text()));
        }
    }

    pub(super) fn mark(&mut self, at_ms: u64, lane: Lane, mark: Mark, name: &str) {
        (at_ms, lane, mark).hash(&mut self.hasher);
        if let Some(recording) = &mut self.recording {
            let marks = recording.marks.entry(lane).or_default();
            marks.push((at_ms, mark, name.to_owned()));
        }
    }

    /// What each lane showed, from when to when.
    pub(super) fn intervals(&self, now_ms: u64) -> Vec<Interval> {
        let mut intervals = Vec::new();
        for (lane, marks) in self.recording.iter().flat_map(|recording| &recording.marks) {
            for (at, (from_ms, mark, name)) in marks.iter().enumerate() {
                let kind = mark.word();
                if kind.is_empty() {
                    continue;
                }
                // A fault is a moment, everything else lasts until the next.
                let until_ms = match marks.get(at + 1) {
                    _ if *mark == Mark::Fault => *from_ms,
                    Some((next_ms, ..)) => *next_ms,
                    None => now_ms,
                };
                intervals.push(Interval {
                    lane: lane.to_string(),
                    kind,
                    name: name.clone(),
                    from_ms: *from_ms,
                    until_ms,
                });
            }
        }
        intervals
    }

    pub(super) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// One line per event; the last ones unless `all` are wanted.
    pub(super) fn trace(&self, all: bool) -> Vec<String> {
        let Some(recording) = &self.recording else {
            return Vec::new();
        };
        let skipped = if all {
            0
        } else {
            recording.events.len().saturating_sub(SHOWN)
        };
        let mut lines = Vec::new();
        if skipped > 0 {
            lines.push(format!("({skipped} earlier events; --trace shows them)"));
        }
        for (at_ms, lane, text) in &recording.events[skipped..] {
            lines.push(format!("{} {lane:<9} {text}", seconds(*at_ms)));
        }
        lines
    }

    /// One line per lane, from the beginning of what [`trace`](Self::trace) shows.
    pub(super) fn timeline(&self, now_ms: u64) -> Vec<String> {
        let Some(recording) = &self.recording else {
            return Vec::new();
        };
        let first = recording.events.len().saturating_sub(SHOWN);
        let from = recording.events.get(first).map_or(0, |(at_ms, _, _)| *at_ms);
        let width = (now_ms.saturating_sub(from) / COLUMNS + 1).max(1);
        let mut lines = vec![format!(
            "from {} to {}, {width} ms a column; . waits, r u W holds, x has lost it, = is paused, # is gone, ! a fault",
            seconds(from),
            seconds(now_ms)
        )];
        for (lane, marks) in &recording.marks {
            let mut line = format!("{lane:<9} ");
            for column in 0..COLUMNS {
                let (begin, end) = (from + column * width, from + (column + 1) * width);
                if begin > now_ms {
                    break;
                }
                // A fault is a moment, everything else lasts until the next.
                let lasting = (*lane != Lane::World)
                    .then(|| marks.iter().rev().find(|(at, ..)| *at <= begin))
                    .flatten();
                let within = marks.iter().filter(|(at, ..)| (begin..end).contains(at));
                let shown = lasting
                    .into_iter()
                    .chain(within)
                    .map(|(_, mark, _)| *mark)
                    .max_by_key(|mark| mark.weight());
                let _ = line.write_char(shown.unwrap_or(Mark::Idle).letter());
            }
            lines.push(line.trim_end().to_owned());
        }
        lines
    }
}

fn seconds(at_ms: u64) -> String {
    format!("{:>4}.{:03}", at_ms / 1000, at_ms % 1000)
}
