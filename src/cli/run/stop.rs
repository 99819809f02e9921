//! Stopping a command: whom, and when.
//!
//! Times are of the clock that goes on while the machine sleeps, as a lease does.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::time::{ClockId, clock_gettime};

/// By the clock of leases. The same for all processes of a machine.
pub(super) fn now() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let id = ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let id = ClockId::Monotonic;
    let now = clock_gettime(id);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Whom a signal reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) pid: Pid,
    /// It leads a group of its own: all of that is meant.
    pub(super) group: bool,
}

impl Target {
    /// What is gone already needs no signal.
    pub(super) fn send(self, signal: Signal) {
        let _ = if self.group {
            kill_process_group(self.pid, signal)
        } else {
            kill_process(self.pid, signal)
        };
    }

    /// Asks it to end, also where it stands still.
    pub(super) fn ask(self) {
        self.send(Signal::TERM);
        self.send(Signal::CONT);
    }
}

/// When to ask, and when to end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    /// `Duration::MAX` once it was asked.
    pub(super) ask_at: Duration,
    pub(super) kill_at: Duration,
}

impl Schedule {
    /// `until` is when the hold could lapse, `most` how much of it there ever was at once: the grace takes no more than a third of that, or a
    /// hold that is fresh from the line, and not renewed yet, would be given up at once.
    pub(super) fn of(until: Duration, most: Duration, grace: Duration) -> Self {
        let grace = grace.min(most / 3);
        let kill_at = until.saturating_sub(ahead(grace));
        Self {
            ask_at: kill_at.saturating_sub(grace),
            kill_at,
        }
    }
}

/// So much before the end the command is killed: it takes the system a moment.
pub(super) fn ahead(grace: Duration) -> Duration {
    (grace / 5).clamp(Duration::from_millis(30), Duration::from_millis(250))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_comes_before_the_hold_could_lapse_and_the_question_a_grace_before_that() {
        let s = Duration::from_secs;
        let schedule = Schedule::of(s(130), s(30), s(5));
        assert!(schedule.kill_at < s(130) && schedule.kill_at > s(129));
        assert_eq!(schedule.kill_at - schedule.ask_at, s(5));
        // Just granted for a claim of 5 s: the next renewal comes after a third of it.
        let schedule = Schedule::of(s(105), s(5), s(5));
        assert!(schedule.ask_at > s(102), "{schedule:?}");
    }
}
