//! What an acquisition gives: three guards over one private [`Hold`].
//!
//! The invariant: dropping a guard gives its hold back, and a guard never says that it is held when somebody else may hold.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::time::Duration;

use crate::backend::Failure;
use crate::core::{Core, Handle};
use crate::error::{Error, ErrorKind, LostCause};
use crate::lock::{Spec, acquire};
use crate::observe;
use crate::owner::Owner;
use crate::protocol::{Call, Downgrade, Downgraded, Ending, Mode, Operation, Release, Released, Reply};
use crate::watchdog::Held;

/// A granted request, and the duty to give it back.
pub(crate) struct Hold {
    client: Arc<Handle>,
    held: Arc<Held>,
    /// Nothing is to be given back: it was, or another guard has taken over.
    spent: bool,
}

/// A guard made from a hold that was acquired in its mode.
pub trait FromHold: sealed::Sealed + Send + 'static {
    #[doc(hidden)]
    #[allow(private_interfaces, reason = "the trait is sealed")]
    fn from_hold(hold: Hold) -> Self;
    #[doc(hidden)]
    #[allow(private_interfaces, reason = "the trait is sealed")]
    fn into_hold(self) -> Hold;
}

mod sealed {
    pub trait Sealed {}
}

impl Hold {
    pub(crate) fn new(client: Arc<Handle>, held: Arc<Held>) -> Self {
        Self {
            client,
            held,
            spent: false,
        }
    }

    fn core(&self) -> &Core {
        &self.client
    }

    pub(crate) fn client(&self) -> Arc<Handle> {
        self.client.clone()
    }

    fn end(&self) -> Option<LostCause> {
        self.held.end(self.core().clock.now())
    }

    pub(crate) fn held(&self) -> &Arc<Held> {
        &self.held
    }

    pub(crate) fn name(&self) -> &str {
        self.held.name.as_str()
    }

    pub(crate) fn fence(&self) -> u64 {
        self.held.fence
    }

    pub(crate) fn valid_for(&self) -> Duration {
        match self.end() {
            Some(_) => Duration::ZERO,
            None => self.held.until().since(self.core().clock.now()),
        }
    }

    pub(crate) async fn lost(&self) -> LostCause {
        self.held.lost(self.core()).await
    }

    /// Independent of the hold, and of what keeps the client going.
    pub(crate) fn on_loss(&self) -> impl Future<Output = LostCause> + Send + use<> {
        let core = self.client.core();
        let held = self.held.clone();
        async move { held.lost(&core).await }
    }

    pub(crate) fn lost_error(&self, cause: LostCause) -> Error {
        self.held.lost_error(cause)
    }

    /// An error if it is no longer held.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.end() {
            None => Ok(()),
            Some(cause) => Err(self.held.lost_error(cause)),
        }
    }

    /// Repeats a call that changes this hold until it is answered, or until `ended` says that the hold has.
    async fn insist<T>(
        &self,
        mut call: Call,
        ended: impl Future<Output = LostCause>,
        read: impl Fn(&Reply) -> Option<Result<T, Ending>>,
    ) -> Result<T, Error> {
        let core = self.core();
        let mut ended = std::pin::pin!(ended);
        let patience = core.clock.now().plus(core.config.patience);
        loop {
            let outcome = tokio::select! {
                biased;
                outcome = core.backend.call(&call) => outcome,
                cause = &mut ended => return Err(self.held.lost_error(cause)),
                () = core.clock.sleep_until(patience) => return Err(core.unreachable(&self.held.name)),
            };
            match outcome {
                Ok(heard) => {
                    core.hear(&heard);
                    return match read(&heard.answer.reply) {
                        Some(Ok(value)) => Ok(value),
                        Some(Err(ending)) => Err(self.held.lost_error(LostCause::of(ending))),
                        None => Err(ErrorKind::Server(
                            "the server answered something else than was asked".into(),
                        )
                        .into()),
                    };
                }
                Err(Failure::No(error)) => return Err(error),
                Err(Failure::Unknown(_)) => {
                    if let Operation::Release(release) = &mut call.operation {
                        release.again = true;
                    }
                    core.pause().await;
                }
            }
        }
    }

    /// Waits until the server knows the hold by its own request again, or until it is lost.
    async fn undone(&self) {
        // Only what was upgraded, or tried to be, is marked.
        if self.held.is_marked() {
            let core = self.core();
            tokio::select! {
                biased;
                () = core.reaper.undone(self.held.member.request) => {}
                _ = self.held.lost(core) => {}
            }
        }
    }

    pub(crate) async fn release(self) -> Result<(), Error> {
        let span = observe::release(&self.held);
        let outcome = observe::within(&span, std::pin::pin!(self.give_back())).await;
        observe::released(&span, outcome.as_ref().copied());
        outcome
    }

    async fn give_back(mut self) -> Result<(), Error> {
        self.check()?;
        self.held.doubt(true);
        self.undone().await;
        let call = Call {
            name: self.held.name.clone(),
            operation: Operation::Release(Release {
                request: self.held.member.request,
                owner: self.held.member.owner,
                fence: self.held.fence,
                again: false,
                mark: self.held.is_marked(),
            }),
        };
        // The watchdog keeps it until the answer: a client that ends meanwhile must find it there. That a renewal finds the hold
        // gone says nothing while it is in doubt.
        let released = self
            .insist(call, self.held.lost(self.core()), |reply| match reply {
                Reply::Release(Released::Released) => Some(Ok(())),
                Reply::Release(Released::NotHeld(ending)) => Some(Err(*ending)),
                _ => None,
            })
            .await;
        // What is not known to be back, the drop gives back.
        if released.is_ok() {
            self.held.give_back(&self.core().clock);
            self.core().watchdog.forget(self.held.member.request);
            self.spent = true;
        }
        released
    }

    pub(crate) async fn downgrade(self, to: Mode) -> Result<Self, Error> {
        self.check()?;
        self.undone().await;
        let call = Call {
            name: self.held.name.clone(),
            operation: Operation::Downgrade(Downgrade {
                request: self.held.member.request,
                owner: self.held.member.owner,
                fence: self.held.fence,
                to,
            }),
        };
        let grant = self
            .insist(call, self.held.lost(self.core()), |reply| match reply {
                Reply::Downgrade(Downgraded::Downgraded(grant)) => Some(Ok(*grant)),
                Reply::Downgrade(Downgraded::NotHeld(ending)) => Some(Err(*ending)),
                _ => None,
            })
            .await?;
        self.held.set_depth(grant.depth);
        self.held.turn(to, &self.core().clock);
        Ok(self)
    }

    /// Becomes a write hold, or stays what it is.
    async fn upgrade(mut self, wait: bool, timeout: Option<Duration>) -> Result<Self, (Error, Self)> {
        if let Err(error) = self.check() {
            return Err((error, self));
        }
        let client = self.client.clone();
        let request = self.held.member.request;
        let keep = self.held.keep;
        let core: &Core = &client;
        let begun = core.clock.now();
        let mut spec = Spec {
            name: self.held.name.clone(),
            mode: Mode::Write,
            owner: None,
            timeout,
            lease: keep.fixed.then_some(keep.lease),
            max_hold: None,
            cap: self.held.cap,
            label: self.held.label.clone(),
            replicas: Some(keep.replicas),
            wait,
            first: false,
            spin: None,
            keep_until_dropped: keep.until_dropped,
            upgrade_of: Some(request),
        };
        // The one before it may still be under way to be undone.
        let patience = begun.plus(timeout.unwrap_or(core.config.patience));
        tokio::select! {
            biased;
            () = self.undone() => {}
            () = core.clock.sleep_until(patience) => return Err((core.unreachable(&spec.name), self)),
        }
        if let Some(timeout) = timeout.filter(|timeout| !timeout.is_zero()) {
            let left = timeout.saturating_sub(core.clock.now().since(begun));
            spec.timeout = Some(left.max(Duration::from_nanos(1)));
        }
        // Until it is known which of the two requests the server holds, its release must settle both.
        self.held.mark();
        let upgrading = Upgrading::new(self.held.clone());
        let outcome = tokio::select! {
            biased;
            outcome = acquire(&client, &spec, Some(self.owner())) => outcome,
            cause = self.held.lost(core) => Err(self.held.lost_error(cause)),
        };
        drop(upgrading);
        match outcome {
            Ok(Some(hold)) => {
                self.spent = true;
                self.held.give_back(&core.clock);
                core.watchdog.forget(request);
                Ok(hold)
            }
            Ok(None) => Err((spec.timed_out(Duration::ZERO, crate::Blame::default()), self)),
            Err(error) => {
                // The server does not know it: the guard that is handed back must not say otherwise.
                if let Some(cause) = error.lost_cause() {
                    core.watchdog.lose(core, request, cause);
                }
                Err((error, self))
            }
        }
    }

    fn owner(&self) -> Owner {
        Owner::from_id(self.held.member.owner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.spent {
            let core: &Core = &self.client;
            self.held.doubt(true);
            self.held.give_back(&core.clock);
            // Handed over before it is forgotten: a client that ends meanwhile finds it in the one place or in the other.
            core.reaper.release(core, &self.held);
            core.watchdog.forget(self.held.member.request);
        }
    }
}

/// While it lives, the server may know a hold by its upgrade.
struct Upgrading {
    held: Arc<Held>,
}

impl Upgrading {
    fn new(held: Arc<Held>) -> Self {
        held.doubt(true);
        Self { held }
    }
}

impl Drop for Upgrading {
    fn drop(&mut self) {
        self.held.doubt(false);
    }
}

macro_rules! guard {
    ($(#[$doc:meta])* $name:ident, $mode:expr) => {
        $(#[$doc])*
        #[must_use = "dropping a guard gives its hold back at once"]
        pub struct $name(pub(crate) Hold);

        impl sealed::Sealed for $name {}

        impl FromHold for $name {
            #[allow(private_interfaces, reason = "the trait is sealed")]
            fn from_hold(hold: Hold) -> Self {
                Self(hold)
            }

            #[allow(private_interfaces, reason = "the trait is sealed")]
            fn into_hold(self) -> Hold {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("name", &self.name())
                    .field("owner", &self.owner())
                    .field("fence", &self.fence())
                    .field("is_held", &self.is_held())
                    .finish()
            }
        }

        impl $name {
            /// The name that is held.
            pub fn name(&self) -> &str {
                self.0.name()
            }

            /// Who holds.
            pub fn owner(&self) -> Owner {
                self.0.owner()
            }

            /// In which mode.
            pub fn mode(&self) -> Mode {
                $mode
            }

            /// The fence: a number that strictly grows with every new write hold of this name. Send it along with what you write, and let the
            /// resource refuse what is smaller than it has seen. A read hold has the fence of the last write before it: the
            /// version of what it reads.
            pub fn fence(&self) -> u64 {
                self.0.fence()
            }

            /// How deep this acquisition is: 1 for its owner's first in this mode, 2 inside that, and so on, over all processes of the owner. As the
            /// server counted when it was acquired.
            pub fn depth(&self) -> u64 {
                self.0.held.depth()
            }

            /// Is it held, for certain? Turns false before the server could give the lock to somebody else. By our own clock; asks nobody.
            pub fn is_held(&self) -> bool {
                self.0.end().is_none()
            }

            /// How long it is held for certain, if nothing renews it any more. Zero when it is lost.
            pub fn valid_for(&self) -> Duration {
                self.0.valid_for()
            }

            /// Resolves when the hold is lost, with the cause, before the server could give the lock to somebody else. Never resolves
            /// for a hold that was given back. A downgraded hold goes on; after an upgrade ask the new guard.
            ///
            /// The future is independent of the guard: select on it while the guard is in use.
            ///
            /// # Cancel safety
            ///
            /// Cancel safe: ask again at any time.
            ///
            /// ```
            /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            /// use relatch::{LostCause, Relatch};
            ///
            /// let relatch = Relatch::embedded();
            /// let held = relatch.rwlock("job")?.write().await?;
            /// relatch.revoke("job").await?;
            /// assert_eq!(held.lost().await, LostCause::Revoked);
            /// assert!(!held.is_held());
            /// # Ok::<(), relatch::Error>(()) }).unwrap();
            /// ```
            pub fn lost(&self) -> impl Future<Output = LostCause> + Send + use<> {
                self.0.on_loss()
            }

            /// Runs `work`, and ends it when the hold is lost.
            ///
            /// # Errors
            ///
            /// [`is_lost`](Error::is_lost): the hold was lost before `work` was done, and `work` was dropped where it was.
            ///
            /// # Cancel safety
            ///
            /// As cancel safe as `work`.
            pub async fn protect<F: Future>(&self, work: F) -> Result<F::Output, Error> {
                tokio::select! {
                    biased;
                    cause = self.0.held.lost(self.0.core()) => Err(self.0.held.lost_error(cause)),
                    output = work => Ok(output),
                }
            }

            /// A script for the Redis server that keeps the lock, which it runs only if this hold stands, in one step: await the result, or give it
            /// keys and arguments first. See [`FencedScript`](crate::FencedScript).
            #[cfg(feature = "redis")]
            pub fn run(&self, script: &crate::FencedScript) -> crate::FencedRun {
                crate::FencedRun::new(self.0.client(), [&self.0], script)
            }

            /// Gives the hold back, and says whether it was still there to be given.
            ///
            /// Dropping the guard gives it back as well, in the background.
            ///
            /// # Errors
            ///
            /// [`is_lost`](Error::is_lost): it had been lost before, or no answer came while it was valid. What it guarded may have been entered
            /// by others. [`is_unreachable`](Error::is_unreachable): no answer came within
            /// [`Config::patience`](crate::Config::patience); it is given back in the background.
            ///
            /// # Cancel safety
            ///
            /// Dropping the future leaves the release to the background: nothing is left behind.
            pub async fn release(self) -> Result<(), Error> {
                self.0.release().await
            }
        }
    };
}

guard! {
    /// A read hold. Dropping it gives it back.
    ReadGuard, Mode::Read
}

guard! {
    /// An upgradable hold. Dropping it gives it back.
    UpgradableGuard, Mode::Upgradable
}

guard! {
    /// A write hold. Dropping it gives it back.
    WriteGuard, Mode::Write
}

guard! {
    /// A hold on a [`Mutex`](crate::Mutex): the write mode. Dropping it gives it back.
    MutexGuard, Mode::Write
}

impl WriteGuard {
    /// Becomes a read hold without a gap, and lets waiting readers in.
    ///
    /// # Errors
    ///
    /// [`is_lost`](Error::is_lost): it was lost. The hold is given back.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the hold back.
    pub async fn downgrade(self) -> Result<ReadGuard, Error> {
        Ok(ReadGuard(self.0.downgrade(Mode::Read).await?))
    }

    /// Becomes an upgradable hold without a gap, and lets waiting readers in.
    ///
    /// # Errors
    ///
    /// [`is_lost`](Error::is_lost): it was lost. The hold is given back.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the hold back.
    pub async fn downgrade_to_upgradable(self) -> Result<UpgradableGuard, Error> {
        Ok(UpgradableGuard(self.0.downgrade(Mode::Upgradable).await?))
    }
}

impl UpgradableGuard {
    /// Becomes a write hold without a gap: waits, ahead of everybody, for the readers to leave. Await the result, or first
    /// give it a timeout: see [`Upgrade`].
    pub fn upgrade(self) -> Upgrade {
        Upgrade {
            guard: self,
            timeout: None,
        }
    }

    /// Becomes a write hold if no reader is in the way; else it is handed back as it is.
    ///
    /// # Errors
    ///
    /// As [`Upgrade`], but never a timeout.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the hold back.
    pub async fn try_upgrade(self) -> Result<Result<WriteGuard, UpgradableGuard>, UpgradeError> {
        match self.0.upgrade(false, None).await {
            Ok(hold) => Ok(Ok(WriteGuard(hold))),
            Err((error, hold)) if error.is_timeout() => Ok(Err(UpgradableGuard(hold))),
            Err((error, hold)) => Err(UpgradeError::new(error, hold)),
        }
    }

    /// Becomes a read hold without a gap, and lets the next upgradable or write request come nearer.
    ///
    /// # Errors
    ///
    /// [`is_lost`](Error::is_lost): it was lost. The hold is given back.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the hold back.
    pub async fn downgrade(self) -> Result<ReadGuard, Error> {
        Ok(ReadGuard(self.0.downgrade(Mode::Read).await?))
    }
}

/// An upgrade: await it for the write guard.
///
/// # Errors
///
/// An [`UpgradeError`], which has the upgradable guard in it: after a timeout it is still held.
///
/// # Cancel safety
///
/// Dropping the future gives the hold back, in whichever mode it is.
#[must_use = "an upgrade does nothing until it is awaited"]
#[derive(Debug)]
pub struct Upgrade {
    pub(crate) guard: UpgradableGuard,
    timeout: Option<Duration>,
}

impl Upgrade {
    /// Gives up after so long. Zero asks once and does not wait. A fixed lease begins anew with the upgrade; a
    /// `max_hold` goes on counting.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

impl IntoFuture for Upgrade {
    type Output = Result<WriteGuard, UpgradeError>;
    type IntoFuture = std::pin::Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            match self.guard.0.upgrade(true, self.timeout).await {
                Ok(hold) => Ok(WriteGuard(hold)),
                Err((error, hold)) => Err(UpgradeError::new(error, hold)),
            }
        })
    }
}

/// An upgrade that did not come about, with the upgradable guard that it was to be.
///
/// With `?` in a function that returns [`Error`] it becomes one, and the guard gives its hold back. In a `Box<dyn Error>` or its kin the
/// guard goes along, and is held for as long as the error lives: say `.map_err(relatch::Error::from)?` there.
pub struct UpgradeError {
    error: Error,
    guard: Box<UpgradableGuard>,
}

impl UpgradeError {
    pub(crate) fn new(error: Error, hold: Hold) -> Self {
        Self {
            error,
            guard: Box::new(UpgradableGuard(hold)),
        }
    }

    /// Why not.
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// The guard: still held, unless the error says that it is lost.
    pub fn into_guard(self) -> UpgradableGuard {
        *self.guard
    }
}

impl From<UpgradeError> for Error {
    fn from(failed: UpgradeError) -> Self {
        failed.error
    }
}

impl fmt::Display for UpgradeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl fmt::Debug for UpgradeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

impl std::error::Error for UpgradeError {}
