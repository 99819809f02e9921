//! What a subject is told to do, and what it tells of it: the words that the driver, its own workers and the program in Java share.
//!
//! A subject only does and notes times; everything is judged here in the driver, from the notes, by the same rules for all.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    Read,
    Write,
}

/// Enters, holds, leaves and rests, again and again.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Worker {
    pub(crate) client: usize,
    pub(crate) name: String,
    pub(crate) mode: Mode,
    pub(crate) start_us: u64,
    pub(crate) hold_us: u64,
    pub(crate) rest_us: u64,
}

impl Worker {
    pub(crate) fn new(client: usize, name: &str, mode: Mode) -> Self {
        let name = name.to_owned();
        Self {
            client,
            name,
            mode,
            start_us: 0,
            hold_us: 0,
            rest_us: 0,
        }
    }
}

/// Some workers side by side.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Job {
    pub(crate) workers: Vec<Worker>,
    /// How often each of them enters, at most; and for how long new turns begin.
    pub(crate) turns: u64,
    pub(crate) for_ms: u64,
    /// How long one waits to get in.
    pub(crate) wait_ms: u64,
    /// The first worker enters before the others ask, and leaves so long after they did.
    pub(crate) settle_us: Option<u64>,
    /// All workers of a client use one handle of a name, where there is such a thing.
    pub(crate) shared: bool,
}

impl Job {
    pub(crate) fn new(workers: Vec<Worker>) -> Self {
        Self {
            workers,
            turns: u64::MAX >> 1,
            for_ms: 600_000,
            wait_ms: 10_000,
            settle_us: None,
            shared: false,
        }
    }
}

/// One turn of a worker, in nanoseconds of one clock. `granted` is 0 if it waited in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "(usize, u64, u64, u64, u64)")]
pub(crate) struct Turn {
    pub(crate) worker: usize,
    /// Before it asked, and when it was in.
    pub(crate) asked: u64,
    pub(crate) granted: u64,
    /// Before it gave back, and when it had.
    pub(crate) leaving: u64,
    pub(crate) left: u64,
}

impl From<(usize, u64, u64, u64, u64)> for Turn {
    fn from((worker, asked, granted, leaving, left): (usize, u64, u64, u64, u64)) -> Self {
        Self {
            worker,
            asked,
            granted,
            leaving,
            left,
        }
    }
}

/// Acquisitions that are dropped (cancelled, interrupted) on their way.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Drops {
    /// `0` and so on is appended.
    pub(crate) name: String,
    pub(crate) mode: Mode,
    /// So many are to be dropped; who is in before that leaves again and does not count. At most ten times as many are tried.
    pub(crate) count: usize,
    /// Each is dropped at a random time up to this.
    pub(crate) within_us: u64,
}

/// Which were dropped on their way: the numbers of their names.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Dropped {
    pub(crate) names: Vec<usize>,
}

/// A line of waiters that is dropped while somebody holds; then the holder leaves and a newcomer asks.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Desertion {
    pub(crate) name: String,
    pub(crate) waiters: usize,
    /// The newcomer's.
    pub(crate) mode: Mode,
    pub(crate) wait_ms: u64,
}

/// The machine's clock, which is also what `System.nanoTime` tells.
pub(crate) fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Seconds since the machine started.
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
