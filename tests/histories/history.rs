//! What is written down while a run lasts: who asked for what, what they were told, and when.
//!
//! The invariant: **a record never claims more than was seen.** Its time is taken on the machine's monotonic clock, which is
//! the same for every process on it, *before* what it tells of an intention or of a guard that says it is held, and *after*
//! what it tells of an outcome. So an operation took effect between its two records, and a hold reached at least from the one to
//! the other, however long its process was kept from running in between. An operation without a second record may or may not have
//! taken effect, or may yet: its process was killed.

use std::time::Duration;

use relatch::Mode;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Nanoseconds of the machine's monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct At(pub u64);

impl At {
    pub fn now() -> Self {
        let nanos = read(ClockId::Monotonic);
        Self(u64::try_from(nanos).expect("a monotonic clock is not negative, and not centuries old"))
    }

    /// Zero when it is not later.
    pub fn since(self, earlier: At) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

fn read(clock: ClockId) -> i128 {
    let now = clock_gettime(clock);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

/// How far the wall clock, which the server goes by, is ahead of the monotonic one, which its clients go by, in nanoseconds. What it
/// moves is nobody's fault here, and may explain a hold that ended early (A2 in docs/guarantees.md).
pub fn wall_clock_ahead() -> i128 {
    read(ClockId::Realtime) - read(ClockId::Monotonic)
}

/// What is guarded, each by a lock of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Resource {
    /// A register: read, then overwritten with something that depends on what was read.
    Register,
    /// A log: its length is read, then an entry is written there, as into a file.
    Log,
}

impl Resource {
    pub const ALL: [Resource; 2] = [Resource::Register, Resource::Log];

    /// Of its lock.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Register => "register",
            Resource::Log => "log",
        }
    }
}

/// The two that keep a copy of each resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Keeper {
    /// Refuses a write whose fence is smaller than one it has seen.
    Checked,
    /// Does as it is told.
    Unchecked,
}

impl Keeper {
    pub const ALL: [Keeper; 2] = [Keeper::Checked, Keeper::Unchecked];
}

/// Names an operation, a hold, an owner, a value: no two in a run are the same.
pub type Id = u64;

/// What is asked of a keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The register's value, or the log's length.
    Get,
    /// `base` is what the get with the id `after` answered. A register becomes `value`; a log gets the entry `value` at the place `base`.
    Put { after: Id, base: u64, value: Id },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Is(u64),
    Done,
    /// Its fence is smaller than one that was seen.
    Stale,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A hold is asked for. `last` says that the faults have ended.
    Asks {
        hold: Id,
        resource: Resource,
        mode: Mode,
        owner: Id,
        last: bool,
    },
    Gets {
        hold: Id,
        fence: u64,
    },
    Fails {
        hold: Id,
        why: String,
    },
    /// Its guard said `is_held()`, at this time or later.
    Holds {
        hold: Id,
    },
    /// Its guard said that it is not held any more.
    Loses {
        hold: Id,
    },
    Calls {
        call: Id,
        resource: Resource,
        keeper: Keeper,
        fence: u64,
        /// The hold under which it is made.
        hold: Id,
        request: Request,
    },
    Hears {
        call: Id,
        answer: Answer,
    },
}

/// One line of a history. A process writes its own in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub process: u32,
    pub at: At,
    pub event: Event,
}
