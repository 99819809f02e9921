//! Who re-enters.

use std::fmt;
use std::future::Future;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, quoted};
use crate::protocol::OwnerId;

tokio::task_local! {
    static CURRENT: Owner;
}

/// An identity that re-enters: what one owner holds never makes the same owner wait.
///
/// Every acquisition has an owner: the one named with `.owner(&owner)`, else the one of the surrounding
/// [`scope`](Self::scope), else a fresh one. A task is *not* an owner: the branches of one `join!` share a task, and would
/// all enter a write lock together.
///
/// An owner is a UUID, and no secret: whoever names it re-enters. It can be written down, sent to another process and used there: both processes then re-enter, and
/// the depth on the server is the sum of both.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use relatch::{Owner, Relatch};
///
/// let relatch = Relatch::embedded();
/// let lock = relatch.rwlock("tree")?;
/// let owner = Owner::new();
/// owner
///     .scope(async {
///         let outer = lock.write().await?;
///         let inner = lock.read().await?; // re-enters; without the scope it would wait for ever
///         assert_eq!(inner.owner(), outer.owner());
///         Ok::<(), relatch::Error>(())
///     })
///     .await?;
/// let same: Owner = owner.to_string().parse()?;
/// assert_eq!(same, owner);
/// # Ok::<(), relatch::Error>(()) }).unwrap();
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Owner(OwnerId);

impl Owner {
    /// A fresh owner, different from every other.
    #[allow(
        clippy::new_without_default,
        reason = "a default owner would suggest that they are all the same"
    )]
    pub fn new() -> Self {
        Self(OwnerId::random())
    }

    /// Runs `future` with this owner: whatever is acquired inside, without an owner of its own, is acquired for this one.
    ///
    /// The scope is the future's, not the task's: what `future` spawns is outside. Enter the scope again there, as in
    /// `tokio::spawn(owner.scope(work))`. And everything inside is *one* owner: concurrent branches in it (`join!`,
    /// `FuturesUnordered`) do not exclude each other. When one of them waits to write, or for upgradable, the others' reads enter with it, not
    /// before: who reads and waits for more makes others wait that it waits for.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `future`.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self.clone(), future)
    }

    /// [`scope`](Self::scope) without async: for what `work` acquires on this thread.
    ///
    /// ```
    /// use relatch::{Owner, Relatch};
    ///
    /// let relatch = Relatch::embedded();
    /// let lock = relatch.rwlock("tree")?;
    /// let owner = Owner::new();
    /// let _outer = lock.write().owner(&owner).wait()?;
    /// let inner = owner.sync_scope(|| lock.read().wait())?; // re-enters; the thread is another owner
    /// assert_eq!(inner.owner(), owner);
    /// # Ok::<(), relatch::Error>(())
    /// ```
    pub fn sync_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), work)
    }

    /// The owner of the surrounding [`scope`](Self::scope), if there is one.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    pub(crate) fn id(&self) -> OwnerId {
        self.0
    }

    pub(crate) fn from_id(id: OwnerId) -> Self {
        Self(id)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.0, f)
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owner({self})")
    }
}

impl FromStr for Owner {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match Uuid::try_parse(text) {
            Ok(uuid) => Ok(Self(OwnerId(uuid))),
            Err(error) => Err(ErrorKind::Invalid(format!(
                "{} is not an owner: {error}; an owner is a UUID as `Owner::to_string` writes it",
                quoted(text)
            ))
            .into()),
        }
    }
}
