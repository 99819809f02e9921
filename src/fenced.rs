//! What makes fences bite: whoever lost its hold and does not know yet finds the door shut, at the resource itself.
//!
//! [`Gate`] is for what lives in a process, [`Stamp`] for what was read: both are numbers that are compared, and neither asks anybody.

use std::fmt;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};
use crate::guard::{ReadGuard, UpgradableGuard, WriteGuard};
use crate::lock::RwLock;
use crate::protocol::{Mode, Operation, Reply};

/// A resource in this process that refuses fences smaller than the greatest that it has seen. It is for the side of the *resource*: what several
/// clients of a lock, in this process or others, write to.
///
/// The first writer of a new hold shuts the door behind it: from then on the one before it, whose lease has ended without its notice, is refused.
/// One gate is for what one name guards: fences of different names say nothing about each other.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use relatch::{Gate, Relatch};
///
/// let account = Gate::new(100);
/// let relatch = Relatch::embedded();
/// let lock = relatch.rwlock("account")?;
///
/// let slow = lock.write().await?.fence(); // its holder pauses here, and loses the hold
/// let write = lock.write().await?;
/// account.write(write.fence(), |balance| *balance -= 30)?;
///
/// let late = account.write(slow, |balance| *balance = 0).unwrap_err();
/// assert!(late.is_stale());
/// assert_eq!(account.read(|balance| *balance), 70);
/// # Ok::<(), relatch::Error>(()) }).unwrap();
/// ```
#[derive(Default)]
pub struct Gate<T> {
    inside: Mutex<Inside<T>>,
}

#[derive(Default)]
struct Inside<T> {
    fence: u64,
    value: T,
}

impl<T: fmt::Debug> fmt::Debug for Gate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inside = self.inside.lock();
        f.debug_struct("Gate")
            .field("fence", &inside.fence)
            .field("value", &inside.value)
            .finish()
    }
}

impl<T> Gate<T> {
    /// Open to every fence.
    pub const fn new(value: T) -> Self {
        Self::with_fence(value, 0)
    }

    /// Open to this fence and greater ones: for a value that was stored together with [its fence](Self::fence).
    pub const fn with_fence(value: T, fence: u64) -> Self {
        Self {
            inside: Mutex::new(Inside { fence, value }),
        }
    }

    /// Changes the value, unless somebody with a greater fence has been here. Others wait while `change` runs: it must be brief. If it panics, what it has
    /// changed so far stays.
    ///
    /// # Errors
    ///
    /// [`is_stale`](Error::is_stale): the hold behind this fence was lost, and the next one has written. `change` was not run.
    pub fn write<R>(&self, fence: u64, change: impl FnOnce(&mut T) -> R) -> Result<R, Error> {
        let mut inside = self.inside.lock();
        if fence < inside.fence {
            return Err(ErrorKind::Stale {
                fence,
                seen: inside.fence,
            }
            .into());
        }
        inside.fence = fence;
        Ok(change(&mut inside.value))
    }

    /// Looks at the value. Anybody may: a reader that must not see what is about to change takes a read hold.
    pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.inside.lock().value)
    }

    /// The greatest fence that has been here; 0 for none.
    pub fn fence(&self) -> u64 {
        self.inside.lock().fence
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.inside.into_inner().value
    }
}

/// The version of what a lock guards: the fence of the last write hold before it was made. Keep it beside what was read (it can be written down),
/// and ask [`RwLock::validate`] later whether that still stands.
///
/// From [`RwLock::stamp`], or of a guard: what was read under a hold has its stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamp(u64);

impl Stamp {
    pub(crate) fn new(fence: u64) -> Self {
        Self(fence)
    }

    /// The fence.
    pub fn fence(self) -> u64 {
        self.0
    }
}

macro_rules! stamps {
    ($($guard:ident)*) => { $(
        /// The version of what it reads, or writes: what is read, or has been written, under this hold has it until the next write hold.
        impl From<&$guard> for Stamp {
            fn from(guard: &$guard) -> Self {
                Self(guard.fence())
            }
        }
    )* };
}

stamps! { ReadGuard UpgradableGuard WriteGuard }

impl RwLock {
    /// The version of what is guarded, to read it optimistically: without a hold, and without keeping any writer out. `None` while somebody writes.
    ///
    /// Read, then [`validate`](Self::validate); if that says no, what was read may be a mixture: throw it away, and try again or take a read hold.
    ///
    /// # Errors
    ///
    /// [`is_unreachable`](Error::is_unreachable) when the server does not answer within [`Config::patience`](crate::Config::patience).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it changes nothing.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let relatch = relatch::Relatch::embedded();
    /// let lock = relatch.rwlock("prices")?;
    /// let stamp = lock.stamp().await?.expect("nobody writes");
    /// let price = 17; // read from where it is kept
    /// assert!(lock.validate(stamp).await?, "nobody has written meanwhile: {price} was the price");
    ///
    /// lock.write().await?.release().await?;
    /// assert!(!lock.validate(stamp).await?);
    /// # Ok::<(), relatch::Error>(()) }).unwrap();
    /// ```
    pub async fn stamp(&self) -> Result<Option<Stamp>, Error> {
        match self.version().await? {
            Some(0) => {}
            version => return Ok(version.map(Stamp)),
        }
        // A name that was idle for so long that its fence is forgotten gets one by being read. Without it a stamp would be
        // that of a name that is forgotten again, after a write.
        match self.try_read().await? {
            Some(read) => {
                let stamp = Stamp::from(&read);
                read.release().await?;
                Ok(Some(stamp))
            }
            None => Ok(None),
        }
    }

    /// Does what was read with this stamp still stand? Then nobody has held to write since the stamp was made. It says no, too, when the name was idle
    /// for so long that its fence is forgotten ([`Config::fence_retention`](crate::Config::fence_retention)).
    ///
    /// # Errors
    ///
    /// As [`stamp`](Self::stamp).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it changes nothing.
    pub async fn validate(&self, stamp: Stamp) -> Result<bool, Error> {
        Ok(stamp.0 > 0 && self.version().await? == Some(stamp.0))
    }

    /// The last fence, 0 for none; `None` while somebody writes.
    async fn version(&self) -> Result<Option<u64>, Error> {
        // One owner: who writes is alone, and who holds more than the others comes first.
        let answer = crate::client::ask(&self.client, &self.name, Operation::Inspect(1)).await?;
        let Reply::Inspect(snapshot) = answer.reply else {
            return Err(crate::client::unexpected());
        };
        let written = snapshot.holding.iter().any(|row| row.mode == Mode::Write);
        Ok((!written).then_some(snapshot.fence))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use super::*;

    #[test]
    fn a_gate_lets_the_greatest_fence_in_and_greater_ones() {
        let gate = Gate::with_fence(Vec::new(), 5);
        assert!(
            gate.write(4, |_| unreachable!("it is not run"))
                .unwrap_err()
                .is_stale()
        );
        gate.write(5, |seen| seen.push(5)).unwrap();
        gate.write(5, |seen| seen.push(5)).unwrap();
        gate.write(9, |seen| seen.push(9)).unwrap();
        let error = gate.write(8, |seen| seen.push(8)).unwrap_err();
        assert!(
            error.to_string().contains("fence 8") && error.to_string().contains('9'),
            "{error}"
        );
        assert_eq!((gate.fence(), gate.read(Vec::len)), (9, 3));
        assert_eq!(gate.into_inner(), [5, 5, 9]);
    }

    #[test]
    fn a_stamp_is_written_down_and_read_again() {
        let stamp = Stamp(1_795_000_000_000_123);
        let text = serde_json::to_string(&stamp).unwrap();
        assert_eq!(text, "1795000000000123");
        assert_eq!(serde_json::from_str::<Stamp>(&text).unwrap(), stamp);
    }
}
