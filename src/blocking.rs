//! The same lock for threads.
//!
//! There is no second API: what is awaited elsewhere is waited for here, with [`wait`](crate::Acquire::wait) in the place of `.await`, on the
//! same locks with the same options and the same futures underneath. What differs is what a thread brings along:
//!
//! - **A thread is its own owner.** Plain recursion re-enters. An owner that is [named](crate::Acquire::owner), or in
//!   [scope](crate::Owner::sync_scope), goes before it.
//! - **Guards stay on their thread** ([`Guard`] is not `Send`), as its owner does: a guard that went to another task of this thread would let that
//!   one in as well. [`Guard::into_inner`] takes it out of this rule.
//! - **A client for threads has a thread of its own**, which nobody can block: embedded clients, and those of [`connect`],
//!   [`Builder::connect_blocking`](crate::Builder::connect_blocking) and [`Builder::own_thread`](crate::Builder::own_thread). With any other the wait is an
//!   [error](crate::Error::is_invalid), as the client's task might run on the very thread that waits for it.
//!
//! It needs no runtime, and can be called inside of one, of any flavor, with timers or without: it blocks the thread that it is called on, as `std`'s locks do. Only
//! a client's own thread refuses to wait ([`block_on`](crate::Relatch::block_on) spawns there where it has no other runtime). Inside a
//! runtime with a single thread what this thread waits for has to be released by another thread; give it a timeout.
//!
//! A pool that runs another job on a thread while one of its jobs waits (rayon does) makes the two one owner: name one for each job there.
//!
//! ```
//! use relatch::{Error, Relatch, RwLock};
//! use std::time::Duration;
//!
//! fn visit(lock: &RwLock, levels: u64) -> Result<u64, Error> {
//!     let read = lock.read().timeout(Duration::from_secs(2)).wait()?;
//!     if levels == 1 { Ok(read.depth()) } else { visit(lock, levels - 1) }
//! }
//!
//! let relatch = Relatch::embedded(); // or: relatch::blocking::connect("redis://127.0.0.1:6379")?
//! let lock = relatch.rwlock("catalog")?;
//! assert_eq!(visit(&lock, 5)?, 5);
//!
//! let write = lock.write().wait()?;
//! std::thread::scope(|threads| {
//!     let other = threads.spawn(|| lock.try_read().wait().map(|read| read.is_none()));
//!     assert!(other.join().unwrap()?, "another thread is another owner");
//!     Ok::<(), Error>(())
//! })?;
//! write.release()?; // or drop it
//! # Ok::<(), Error>(())
//! ```

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Wake, Waker};

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::core::Core;
use crate::error::{Error, ErrorKind};
use crate::guard::{FromHold, ReadGuard, UpgradableGuard, Upgrade, UpgradeError, WriteGuard};
use crate::lock::{Acquire, TryAcquire};
use crate::multi::{Multi, MultiGuard, TryMulti};
use crate::owner::Owner;
use crate::protocol::Mode;
use crate::room::{self, Room};

/// Connects to a server, and gives the client a thread of its own. Needs no runtime.
///
/// # Errors
///
/// As [`Relatch::connect`](crate::Relatch::connect).
#[cfg(feature = "redis")]
pub fn connect(url: &str) -> Result<crate::Relatch, Error> {
    crate::Relatch::builder().url(url).connect_blocking()
}

/// Who acquires on this thread, unless it is said or in scope.
pub(crate) fn owner() -> Owner {
    thread_local! {
        static THREAD: Owner = Owner::new();
    }
    Owner::current()
        .or_else(|| THREAD.try_with(Clone::clone).ok())
        // A thread that ends has forgotten who it was; nobody can re-enter what it takes now.
        .unwrap_or_else(Owner::new)
}

/// Blocks this thread until `future` is done.
pub(crate) fn wait<F: Future>(core: &Core, future: F) -> Result<F::Output, Error> {
    Ok(wait_in(room(core)?, future))
}

/// The same for a user's own future, which may spawn: that belongs on the runtime that it is called in, if another thread drives that.
pub(crate) fn wait_for_theirs<F: Future>(core: &Core, future: F) -> Result<F::Output, Error> {
    let room = room(core)?;
    Ok(match runtime_with_many() {
        Some(runtime) => wait_on(&runtime, future),
        None => wait_in(room, future),
    })
}

fn room(core: &Core) -> Result<Room, Error> {
    if room::is_ours() {
        return Err(ErrorKind::Invalid(
            "this is a client's own thread, which renews and hears what is granted, and must not block: `.await` it, or spawn the task on \
             a runtime of your own"
                .into(),
        )
        .into());
    }
    if let Some(room) = core.room() {
        return Ok(room);
    }
    if core.is_ending() {
        return Err(ErrorKind::Closed.into());
    }
    Err(ErrorKind::Invalid(
        "this client's task runs on a runtime, which a thread that waits could block: make the client with \
         `blocking::connect`, or give it a thread of its own with `Builder::own_thread`"
            .into(),
    )
    .into())
}

/// It is polled on this thread, with the timers of the client's own.
fn wait_in<F: Future>(room: Room, future: F) -> F::Output {
    wait_on(&room.runtime, future)
}

fn wait_on<F: Future>(runtime: &Handle, future: F) -> F::Output {
    give_way(move || {
        let _context = runtime.enter();
        // Without a budget: the task that may be around this one gets no new one while it is blocked.
        pollster::block_on(tokio::task::unconstrained(future))
    })
}

/// The runtime that this is called in, if it has more threads than this one.
fn runtime_with_many() -> Option<Handle> {
    Handle::try_current()
        .ok()
        .filter(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread)
}

/// Blocks. On a worker of a runtime with many, another takes over what is queued on this one: it may be what this one waits for.
fn give_way<T>(block: impl FnOnce() -> T) -> T {
    if runtime_with_many().is_none() || !is_worker() {
        return block();
    }
    // What still passes for a worker is a runtime with one thread, in which the handle of one with many was entered. Tokio refuses that with a panic,
    // before it has begun.
    let mut block = Some(block);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        tokio::task::block_in_place(|| block.take().map(|block| block()))
    }));
    match (outcome, block) {
        (Ok(Some(value)), _) => value,
        (_, Some(block)) => block(),
        (Err(panic), None) => resume_unwind(panic),
        (Ok(None), None) => unreachable!("it is taken once"),
    }
}

/// Is this thread one that runs a runtime's tasks? Asked of nobody else can a worker give way: tokio panics, and so it does in a `LocalSet`, whose
/// tasks look the same in all other respects. A yield tells: a worker keeps the waker for later, anywhere else it is woken at once.
fn is_worker() -> bool {
    struct Woken(AtomicBool);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(woken.clone());
    let _pending = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&waker));
    !woken.0.load(Ordering::Relaxed)
}

impl<G: FromHold> Acquire<G> {
    /// Blocks this thread until it is acquired: `.await` for [threads](crate::blocking), which are their own owners.
    ///
    /// # Errors
    ///
    /// As awaiting it; and [`is_invalid`](Error::is_invalid) when the client has no thread of its own.
    pub fn wait(mut self) -> Result<Guard<G>, Error> {
        self.spec.owner.get_or_insert_with(owner);
        let client = self.client.clone();
        wait(&client, self.into_future())?.map(Guard::new)
    }
}

impl<G: FromHold> TryAcquire<G> {
    /// Blocks this thread until the server has answered: `.await` for [threads](crate::blocking), which are their own owners.
    ///
    /// # Errors
    ///
    /// As awaiting it; and [`is_invalid`](Error::is_invalid) when the client has no thread of its own.
    pub fn wait(mut self) -> Result<Option<Guard<G>>, Error> {
        self.0.spec.owner.get_or_insert_with(owner);
        let client = self.0.client.clone();
        Ok(wait(&client, self.into_future())??.map(Guard::new))
    }
}

impl Multi {
    /// Blocks this thread until all are acquired: `.await` for [threads](crate::blocking), which are their own owners.
    ///
    /// # Errors
    ///
    /// As awaiting it; and [`is_invalid`](Error::is_invalid) when the client has no thread of its own.
    pub fn wait(mut self) -> Result<Guard<MultiGuard>, Error> {
        self.owner.get_or_insert_with(owner);
        let client = self.client.clone();
        wait(&client, self.into_future())?.map(Guard::new)
    }
}

impl TryMulti {
    /// Blocks this thread until the server has answered: `.await` for [threads](crate::blocking), which are their own owners.
    ///
    /// # Errors
    ///
    /// As awaiting it; and [`is_invalid`](Error::is_invalid) when the client has no thread of its own.
    pub fn wait(mut self) -> Result<Option<Guard<MultiGuard>>, Error> {
        self.0.owner.get_or_insert_with(owner);
        let client = self.0.client.clone();
        Ok(wait(&client, self.into_future())??.map(Guard::new))
    }
}

impl Upgrade {
    /// Blocks this thread until it is upgraded: `.await` for [threads](crate::blocking).
    ///
    /// # Errors
    ///
    /// As awaiting it.
    pub fn wait(self) -> Result<Guard<WriteGuard>, UpgradeError> {
        match room(&self.guard.0.client()) {
            Ok(room) => wait_in(room, self.into_future()).map(Guard::new),
            Err(error) => Err(UpgradeError::new(error, self.guard.into_hold())),
        }
    }
}

/// A guard that stays on its thread. All that the guard inside can tell it tells, too.
///
/// Dropping it gives the hold back, also when the thread unwinds.
///
/// ```compile_fail,E0277
/// fn goes_to_another_thread<T: Send>(_: T) {}
/// let relatch = relatch::Relatch::embedded();
/// goes_to_another_thread(relatch.rwlock("it").unwrap().read().wait().unwrap());
/// ```
#[must_use = "dropping a guard gives its hold back at once"]
pub struct Guard<G> {
    guard: G,
    /// Neither is that one `Send`; and it is `Sync`.
    stays: PhantomData<MutexGuard<'static, ()>>,
}

impl<G> Guard<G> {
    fn new(guard: G) -> Self {
        Self {
            guard,
            stays: PhantomData,
        }
    }

    /// The guard alone, which may go to another thread, or to async code. It goes on being its owner's: while it lives, this thread
    /// re-enters what it guards (unless another owner was named).
    pub fn into_inner(self) -> G {
        self.guard
    }
}

impl<G: FromHold> Guard<G> {
    /// Gives the hold back, and says whether it was still there to be given.
    ///
    /// # Errors
    ///
    /// As [`WriteGuard::release`].
    pub fn release(self) -> Result<(), Error> {
        let hold = self.guard.into_hold();
        hold.check()?;
        let client = hold.client();
        wait(&client, hold.release())?
    }
}

impl Guard<MultiGuard> {
    /// Gives all of them back, and says whether all were still there to be given.
    ///
    /// # Errors
    ///
    /// As [`MultiGuard::release`].
    pub fn release(self) -> Result<(), Error> {
        match room(&self.guard.client()) {
            Ok(room) => wait_in(room, self.guard.release()),
            // That they are lost says more than that the client is closed. Those that are left go back with the guard.
            Err(error) => self.guard.check().and(Err(error)),
        }
    }
}

impl Guard<UpgradableGuard> {
    /// Becomes a write hold without a gap: [`wait`](Upgrade::wait) for it, or first give it a timeout.
    pub fn upgrade(self) -> Upgrade {
        self.guard.upgrade()
    }

    /// Becomes a write hold if no reader is in the way; else it is handed back as it is.
    ///
    /// # Errors
    ///
    /// As [`UpgradableGuard::try_upgrade`].
    pub fn try_upgrade(self) -> Result<Result<Guard<WriteGuard>, Self>, UpgradeError> {
        match room(&self.guard.0.client()) {
            Ok(room) => wait_in(room, self.guard.try_upgrade())
                .map(|outcome| outcome.map(Guard::new).map_err(Guard::new)),
            Err(error) => Err(UpgradeError::new(error, self.guard.into_hold())),
        }
    }

    /// Becomes a read hold without a gap.
    ///
    /// # Errors
    ///
    /// As [`UpgradableGuard::downgrade`].
    pub fn downgrade(self) -> Result<Guard<ReadGuard>, Error> {
        downgrade(self.guard, Mode::Read)
    }
}

impl Guard<WriteGuard> {
    /// Becomes a read hold without a gap, and lets waiting readers in.
    ///
    /// # Errors
    ///
    /// As [`WriteGuard::downgrade`].
    pub fn downgrade(self) -> Result<Guard<ReadGuard>, Error> {
        downgrade(self.guard, Mode::Read)
    }

    /// Becomes an upgradable hold without a gap, and lets waiting readers in.
    ///
    /// # Errors
    ///
    /// As [`WriteGuard::downgrade_to_upgradable`].
    pub fn downgrade_to_upgradable(self) -> Result<Guard<UpgradableGuard>, Error> {
        downgrade(self.guard, Mode::Upgradable)
    }
}

fn downgrade<G: FromHold, To: FromHold>(guard: G, to: Mode) -> Result<Guard<To>, Error> {
    let hold = guard.into_hold();
    hold.check()?;
    let client = hold.client();
    let hold = wait(&client, hold.downgrade(to))??;
    Ok(Guard::new(To::from_hold(hold)))
}

impl<G> Deref for Guard<G> {
    type Target = G;
    fn deref(&self) -> &G {
        &self.guard
    }
}

impl<G: fmt::Debug> fmt::Debug for Guard<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.guard, f)
    }
}
