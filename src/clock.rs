//! Time. The only caller of the operating system's clocks, so that tests can move it.
//!
//! A lease goes on while a process is stopped and while its machine sleeps, so the clock here must too: on Linux that is
//! `CLOCK_BOOTTIME`, as `Instant` (`CLOCK_MONOTONIC`) stands still in suspend. Wall-clock time is never used to decide anything.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use crate::room::{Room, Rooms};

/// A point on a client's monotonic clock. Only meaningful within one [`Clock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(crate) Duration);

impl Moment {
    pub(crate) const FAR: Moment = Moment(Duration::MAX);

    pub(crate) fn plus(self, d: Duration) -> Moment {
        Moment(self.0.saturating_add(d))
    }

    pub(crate) fn minus(self, d: Duration) -> Moment {
        Moment(self.0.saturating_sub(d))
    }

    /// How long after `earlier` this is; zero when it is not.
    pub(crate) fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// The clock of an embedded [`Relatch`](crate::Relatch): the system's, or one that a test moves.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use relatch::{Clock, Relatch};
/// use std::time::Duration;
///
/// let clock = Clock::manual();
/// let relatch = Relatch::builder().clock(clock.clone()).embedded()?;
/// let held = relatch.rwlock("job")?.write().lease(Duration::from_secs(5)).await?;
///
/// clock.advance(Duration::from_secs(6));
/// assert!(!held.is_held());
/// # Ok::<(), relatch::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    rooms: Rooms,
}

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<Mutex<Manual>>),
    /// The runtime's clock, which a simulation moves, at a rate of its own.
    #[cfg(feature = "cli")]
    Simulated(Skew),
}

/// How a simulated clock differs from the runtime's.
#[cfg(feature = "cli")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Skew {
    /// When the clock showed `shown`.
    pub(crate) begun: tokio::time::Instant,
    pub(crate) shown: Duration,
    /// How many of its seconds pass in one.
    pub(crate) rate: f64,
}

#[cfg(feature = "cli")]
impl Skew {
    pub(crate) fn now(&self) -> Duration {
        self.shown + self.begun.elapsed().mul_f64(self.rate)
    }
}

#[derive(Debug, Default)]
struct Manual {
    now: Duration,
    sleepers: Vec<(Duration, Waker)>,
}

impl From<Source> for Clock {
    fn from(source: Source) -> Self {
        Self {
            source,
            rooms: Rooms::default(),
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl Clock {
    /// The operating system's monotonic clock, which goes on in suspend.
    pub fn system() -> Self {
        Source::System.into()
    }

    /// A clock that only [`advance`](Self::advance) moves.
    ///
    /// To move it farther than a lease at once is what a stopped process looks like: holds lapse, also those that a watchdog renews. To
    /// see them renewed, move it by less than a third of the lease and wait until the guard's
    /// [`valid_for`](crate::WriteGuard::valid_for) has grown before moving it on: the watchdog works on a thread of its own.
    pub fn manual() -> Self {
        Source::Manual(Arc::new(Mutex::new(Manual {
            // Any time will do; not zero, so that "before" exists.
            now: Duration::from_secs(1_000_000),
            sleepers: Vec::new(),
        })))
        .into()
    }

    /// One that runs with a simulation.
    #[cfg(feature = "cli")]
    pub(crate) fn simulated(skew: Skew) -> Self {
        Source::Simulated(skew).into()
    }

    /// The same time, for one client: its timers run where that has a thread of its own.
    pub(crate) fn of_a_client(&self) -> Self {
        self.source.clone().into()
    }

    pub(crate) fn rooms(&self) -> &Rooms {
        &self.rooms
    }

    /// Moves a manual clock, and wakes what was waiting for that time. The system's clock does not move by this.
    pub fn advance(&self, by: Duration) {
        let Source::Manual(manual) = &self.source else {
            return;
        };
        let due: Vec<Waker> = {
            let mut manual = manual.lock();
            manual.now = manual.now.saturating_add(by);
            let now = manual.now;
            manual
                .sleepers
                .extract_if(.., |(at, _)| *at <= now)
                .map(|(_, waker)| waker)
                .collect()
        };
        due.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn now(&self) -> Moment {
        match &self.source {
            Source::System => Moment(system_now()),
            Source::Manual(manual) => Moment(manual.lock().now),
            #[cfg(feature = "cli")]
            Source::Simulated(skew) => Moment(skew.now()),
        }
    }

    /// Resolves at `at`, or at once if that has been.
    pub(crate) fn sleep_until(&self, at: Moment) -> Sleep {
        Sleep {
            clock: self.clone(),
            at,
            timer: None,
        }
    }
}

#[cfg(unix)]
fn system_now() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
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

#[cfg(not(unix))]
fn system_now() -> Duration {
    use std::sync::LazyLock;
    use std::time::Instant;
    static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    ORIGIN.elapsed() + Duration::from_secs(1_000_000)
}

/// The longest single sleep on the runtime's timer, which may stand still while the machine sleeps: after it the
/// clock is asked again.
const NAP: Duration = Duration::from_secs(1);

/// See [`Clock::sleep_until`].
#[derive(Debug)]
pub(crate) struct Sleep {
    clock: Clock,
    at: Moment,
    timer: Option<Timer>,
}

/// A timer of a runtime's, and what keeps that going if it is the client's own.
#[derive(Debug)]
struct Timer {
    sleep: Pin<Box<tokio::time::Sleep>>,
    _room: Option<Room>,
}

impl Timer {
    fn new(rooms: &Rooms, nap: Duration) -> Self {
        let room = rooms.enter();
        let sleep = {
            let _context = room.as_ref().map(|room| room.runtime.enter());
            Box::pin(tokio::time::sleep(nap))
        };
        Self { sleep, _room: room }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let at = self.at;
        if at == Moment::FAR {
            // It never comes. Who waits for something else as well is woken by that.
            return Poll::Pending;
        }
        if let Source::Manual(manual) = &self.clock.source {
            let mut manual = manual.lock();
            if manual.now >= at.0 {
                return Poll::Ready(());
            }
            if !manual
                .sleepers
                .iter()
                .any(|(when, waker)| *when == at.0 && waker.will_wake(cx.waker()))
            {
                manual.sleepers.push((at.0, cx.waker().clone()));
            }
            return Poll::Pending;
        }
        loop {
            let now = self.clock.now();
            if now >= at {
                return Poll::Ready(());
            }
            let nap = at.since(now).min(NAP);
            // A clock that runs slower than the runtime's has as much left after a longer sleep.
            #[cfg(feature = "cli")]
            let nap = match &self.clock.source {
                Source::Simulated(skew) => nap.div_f64(skew.rate),
                _ => nap,
            };
            let mut timer = self
                .timer
                .take()
                .unwrap_or_else(|| Timer::new(&self.clock.rooms, nap));
            match timer.sleep.as_mut().poll(cx) {
                Poll::Ready(()) => {}
                Poll::Pending => {
                    self.timer = Some(timer);
                    return Poll::Pending;
                }
            }
        }
    }
}
