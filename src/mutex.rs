//! The write mode alone, for who only needs that.

use std::fmt;

use crate::guard::MutexGuard;
use crate::lock::{Acquire, RwLock, TryAcquire};
use crate::protocol::Mode;

/// A re-entrant mutex on one name: the write mode of the [`RwLock`] of that name, and nothing else of it. Who uses the same name as a mutex and as a
/// read-write lock uses one lock.
///
/// Made by [`Relatch::mutex`](crate::Relatch::mutex). As for every lock, re-entry is by [`Owner`](crate::Owner), not by task.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use relatch::{Owner, Relatch};
///
/// let relatch = Relatch::embedded();
/// let mutex = relatch.mutex("nightly")?;
/// let owner = Owner::new();
/// let held = mutex.lock().owner(&owner).await?;
/// let again = mutex.lock().owner(&owner).await?;
/// assert_eq!(again.depth(), 2);
/// assert!(mutex.try_lock().await?.is_none(), "another owner");
/// # drop(held);
/// # Ok::<(), relatch::Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Mutex {
    pub(crate) inner: RwLock,
}

impl fmt::Debug for Mutex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex")
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

impl Mutex {
    /// The name it locks.
    pub fn name(&self) -> &str {
        self.inner.name()
    }

    /// The same mutex, for who wants self-locking refused: see [`RwLock::non_reentrant`].
    pub fn non_reentrant(self) -> Self {
        Self {
            inner: self.inner.non_reentrant(),
        }
    }

    /// Acquires it: waits for everybody else to leave. Re-enters at once when its owner holds it.
    pub fn lock(&self) -> Acquire<MutexGuard> {
        Acquire::new(&self.inner, Mode::Write)
    }

    /// A hold if it can be had at once, else `None`.
    pub fn try_lock(&self) -> TryAcquire<MutexGuard> {
        TryAcquire(self.lock())
    }
}
