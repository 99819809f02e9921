//! A lock, and the one path by which everything acquires.

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use crate::backend::{Failure, Heard, Together};
use crate::client::Waiting;
use crate::clock::Moment;
use crate::config::{Backoff, check_lease, check_replicas};
use crate::core::{Core, Handle};
use crate::deadlock;
use crate::error::{Blame, Error, ErrorKind, Holder, LostCause};
use crate::guard::{FromHold, Hold, ReadGuard, UpgradableGuard, WriteGuard};
use crate::observe::{Acquiring as Watched, Flow, InLine, within};
use crate::owner::Owner;
use crate::protocol::{
    Acquire as AcquireCall, Acquired, Call, ClientInfo, Ending, MAX_LABEL, Member, Mode, Name, Operation,
    OwnerId, Polled, Replicas, Reply, RequestId, Snapshot, WaitRow, Withdrawn, millis,
};
use crate::state::{BLAME_ROWS, WhyNot};
use crate::waiters::{Outcome, Wanted};
use crate::watchdog::{Granting, Held, Keep};

/// A re-entrant read-write lock on one name.
///
/// **Re-entry is by owner, not by task.** Outside an [`Owner::scope`], and without `.owner(…)`, every acquisition has an owner of
/// its own: a task that takes the lock again waits for itself.
///
/// Cheap to make and to clone; all locks of a client share its connection. It holds nothing by itself: the guards do.
///
/// Made by [`Relatch::rwlock`](crate::Relatch::rwlock).
#[derive(Clone)]
pub struct RwLock {
    pub(crate) client: Arc<Handle>,
    pub(crate) name: Name,
    /// Its acquisitions do not re-enter.
    pub(crate) first: bool,
}

impl fmt::Debug for RwLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLock")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl RwLock {
    /// The name it locks.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Acquires a read hold: shared with other readers and with one upgradable hold.
    ///
    /// Waits while another owner writes, and while a writer is queued. Re-enters at once, past everybody, when its owner
    /// holds in any mode. Await the result, or first say more: see [`Acquire`].
    pub fn read(&self) -> Acquire<ReadGuard> {
        Acquire::new(self, Mode::Read)
    }

    /// Acquires an upgradable hold: shared with readers, but one owner at a time, who alone may then
    /// [`upgrade`](UpgradableGuard::upgrade) to write without a gap.
    ///
    /// Refused ([`Error::is_refused`]) instead of waiting when its owner holds read only and somebody else is in the way.
    pub fn upgradable_read(&self) -> Acquire<UpgradableGuard> {
        Acquire::new(self, Mode::Upgradable)
    }

    /// Acquires a write hold: exclusive, with a fence that is greater than every one before it.
    ///
    /// Waits for everybody else to leave; no new reader passes it. Re-enters when its owner writes; when its owner holds
    /// upgradable it waits at the head of the line for the readers to leave. Refused ([`Error::is_refused`]) instead of
    /// waiting when its owner holds read only and is not the only reader: two that did this would wait for each other.
    pub fn write(&self) -> Acquire<WriteGuard> {
        Acquire::new(self, Mode::Write)
    }

    /// The same lock, for who wants self-locking refused: an acquisition through it, also a `try_*`, is an error ([`Error::is_refused`]) when its
    /// owner holds the name already, in any mode and in any process, or waits for it. Acquisitions through others go on re-entering.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// use relatch::{Owner, Relatch};
    ///
    /// let relatch = Relatch::embedded();
    /// let lock = relatch.rwlock("ledger")?.non_reentrant();
    /// let owner = Owner::new();
    /// let held = lock.write().owner(&owner).await?;
    /// let error = lock.read().owner(&owner).await.unwrap_err();
    /// assert!(error.is_refused());
    /// held.release().await?;
    /// assert!(lock.read().owner(&owner).await.is_ok());
    /// # Ok::<(), relatch::Error>(()) }).unwrap();
    /// ```
    pub fn non_reentrant(mut self) -> Self {
        self.first = true;
        self
    }

    /// What puts another key into the slot of this lock in a Redis Cluster, for scripts that use both ([`FencedScript`](crate::FencedScript)): `{stock}` for the name
    /// `stock`. In it `%`, `{` and `}` of the name are written as `%25`, `%7B` and `%7D`. A name that begins with something in braces, such as `{order:17}items`, has that as its tag: so several
    /// names share a slot, and one script takes [several at once](crate::Relatch::multi).
    #[cfg(feature = "redis")]
    pub fn hash_tag(&self) -> String {
        crate::backend::redis::hash_tag(&self.name)
    }

    /// A read hold if it can be had at once, else `None`.
    pub fn try_read(&self) -> TryAcquire<ReadGuard> {
        TryAcquire(Acquire::new(self, Mode::Read))
    }

    /// An upgradable hold if it can be had at once, else `None`.
    pub fn try_upgradable_read(&self) -> TryAcquire<UpgradableGuard> {
        TryAcquire(Acquire::new(self, Mode::Upgradable))
    }

    /// A write hold if it can be had at once, else `None`.
    pub fn try_write(&self) -> TryAcquire<WriteGuard> {
        TryAcquire(Acquire::new(self, Mode::Write))
    }
}

/// An acquisition: await it for the guard.
///
/// # Errors
///
/// - [`is_timeout`](Error::is_timeout): not within the [`timeout`](Self::timeout); [`Error::blame`] says who was in the way.
/// - [`is_refused`](Error::is_refused): it would have waited for its own owner.
/// - [`is_deadlock`](Error::is_deadlock): it would have closed a circle of owners that wait for each other, and the client was told to
///   [refuse](crate::Config::refuse_deadlocks) that.
/// - [`is_unreachable`](Error::is_unreachable): the server did not answer within the timeout, or within
///   [`Config::patience`](crate::Config::patience) where there is none.
/// - [`is_unreplicated`](Error::is_unreplicated): too few [`replicas`](Self::replicas) acknowledged it;
///   [`is_lost`](Error::is_lost): it was lost while they were waited for.
/// - [`is_invalid`](Error::is_invalid): an option that can't be used.
/// - [`is_server`](Error::is_server): the server says no. [`is_closed`](Error::is_closed): the client was closed.
///
/// # Cancel safety
///
/// Dropping the future at any point leaves nothing behind: no hold, no place in line, whatever was under way. You lose
/// your place.
///
/// # Examples
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use relatch::{Owner, Relatch};
/// use std::time::Duration;
///
/// let relatch = Relatch::embedded();
/// let lock = relatch.rwlock("catalog")?;
/// let owner = Owner::new();
/// let held = lock
///     .write()
///     .owner(&owner)
///     .timeout(Duration::from_secs(2))
///     .lease(Duration::from_secs(5))
///     .label("nightly import")
///     .await?;
/// held.release().await?;
/// # Ok::<(), relatch::Error>(()) }).unwrap();
/// ```
#[must_use = "an acquisition does nothing until it is awaited"]
pub struct Acquire<G> {
    pub(crate) client: Arc<Handle>,
    pub(crate) spec: Spec,
    guard: PhantomData<fn() -> G>,
}

/// An acquisition that does not wait: await it for the guard, or `None` if somebody is in the way.
///
/// # Errors
///
/// As [`Acquire`], but never a timeout and, unless it is [non-reentrant](RwLock::non_reentrant), never a refusal: both are `None`. [`is_unreachable`](Error::is_unreachable) when the
/// server does not answer within twice the [`Config::response_timeout`](crate::Config::response_timeout).
///
/// # Cancel safety
///
/// As [`Acquire`].
#[must_use = "an acquisition does nothing until it is awaited"]
#[derive(Debug)]
pub struct TryAcquire<G>(pub(crate) Acquire<G>);

impl<G> fmt::Debug for Acquire<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.spec, f)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: Name,
    pub(crate) mode: Mode,
    pub(crate) owner: Option<Owner>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) lease: Option<Duration>,
    pub(crate) max_hold: Option<Duration>,
    /// The cap of the hold that it goes on from.
    pub(crate) cap: Moment,
    pub(crate) label: String,
    /// What was said of replicas, if anything was.
    pub(crate) replicas: Option<Option<Replicas>>,
    pub(crate) wait: bool,
    /// Refused if its owner holds already, or waits.
    pub(crate) first: bool,
    /// Ask with this back-off besides.
    pub(crate) spin: Option<Backoff>,
    pub(crate) keep_until_dropped: bool,
    /// The granted upgradable hold that becomes this one.
    pub(crate) upgrade_of: Option<RequestId>,
}

impl<G> Acquire<G> {
    pub(crate) fn new(lock: &RwLock, mode: Mode) -> Self {
        Self {
            client: lock.client.clone(),
            spec: Spec::new(lock, mode),
            guard: PhantomData,
        }
    }

    /// For this owner, instead of the one of the surrounding [`Owner::scope`].
    pub fn owner(mut self, owner: &Owner) -> Self {
        self.spec.owner = Some(owner.clone());
        self
    }

    /// Gives up after so long, and then takes up to 250 ms more to learn who was in the way. Zero asks once and does not
    /// wait. Without a timeout it waits for as long as it takes.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.spec.timeout = Some(timeout);
        self
    }

    /// A fixed lease: the hold ends so long after its grant, and nothing renews it. 10 ms to 30 days. With a
    /// [`max_hold`](Self::max_hold) as well, the shorter one counts.
    ///
    /// Without it the lease is [`Config::lease`](crate::Config::lease), renewed for as long as the guard lives.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.spec.lease = Some(lease);
        self
    }

    /// Renews for so long at most: a cap on the whole hold. At its end the hold is lost and given back. At least 10 ms.
    pub fn max_hold(mut self, max_hold: Duration) -> Self {
        self.spec.max_hold = Some(max_hold);
        self
    }

    /// While it waits it asks with this back-off, besides being told: for a push that may not come through. A whole client without
    /// pub/sub is made with [`Builder::spin`](crate::Builder::spin).
    pub fn spin(mut self, backoff: Backoff) -> Self {
        self.spec.spin = Some(backoff);
        self
    }

    /// What is revoked is given back when the guard is dropped, not at once: for work that takes a moment to stop, such as a child process. The
    /// guard says from the revocation on that it is not held; nobody else gets the lock before it is dropped, or before the lease that it
    /// had then has run out.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
    /// let relatch = relatch::Relatch::embedded();
    /// let lock = relatch.rwlock("deploy")?;
    /// let held = lock.write().keep_until_dropped().await?;
    /// let revoking = tokio::spawn({
    ///     let relatch = relatch.clone();
    ///     async move { relatch.revoke("deploy").await }
    /// });
    /// held.lost().await; // now stop the work; meanwhile
    /// assert!(lock.try_write().await?.is_none());
    /// drop(held);
    /// assert_eq!(revoking.await.unwrap()?, 1);
    /// # Ok::<(), relatch::Error>(()) }).unwrap();
    /// ```
    pub fn keep_until_dropped(mut self) -> Self {
        self.spec.keep_until_dropped = true;
        self
    }

    /// A word for whoever asks who is in the way: up to 256 bytes.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.spec.label = label.into();
        self
    }

    /// Hands out the guard when so many replicas have acknowledged the hold, which they have `within` to do; zero replicas asks none.
    /// If they are too few, or too late, it is given back, and the error [`is_unreplicated`](Error::is_unreplicated). The acquisition may
    /// take that much longer than its [`timeout`](Self::timeout).
    ///
    /// It makes it unlikely that a fail-over loses the hold, not impossible: the replica that takes over may be one that was not
    /// among them. Let the resource check the fence. Renewals, and what is given back, are not waited for.
    ///
    /// Without it, [`Config::replicas`](crate::Config::replicas).
    pub fn replicas(mut self, number: u32, within: Duration) -> Self {
        self.spec.replicas = Some((number > 0).then_some(Replicas { number, within }));
        self
    }
}

impl<G> TryAcquire<G> {
    /// See [`Acquire::owner`].
    pub fn owner(self, owner: &Owner) -> Self {
        Self(self.0.owner(owner))
    }

    /// See [`Acquire::lease`].
    pub fn lease(self, lease: Duration) -> Self {
        Self(self.0.lease(lease))
    }

    /// See [`Acquire::max_hold`].
    pub fn max_hold(self, max_hold: Duration) -> Self {
        Self(self.0.max_hold(max_hold))
    }

    /// See [`Acquire::keep_until_dropped`].
    pub fn keep_until_dropped(self) -> Self {
        Self(self.0.keep_until_dropped())
    }

    /// See [`Acquire::label`].
    pub fn label(self, label: impl Into<String>) -> Self {
        Self(self.0.label(label))
    }

    /// See [`Acquire::replicas`].
    pub fn replicas(self, number: u32, within: Duration) -> Self {
        Self(self.0.replicas(number, within))
    }
}

/// What awaiting an acquisition is.
pub type Acquiring<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

impl<G: FromHold> IntoFuture for Acquire<G> {
    type Output = Result<G, Error>;
    type IntoFuture = Acquiring<G>;

    fn into_future(self) -> Acquiring<G> {
        let owner = self.spec.owner();
        Box::pin(async move {
            match acquire(&self.client, &self.spec, owner).await? {
                Some(hold) => Ok(G::from_hold(hold)),
                // Only an acquisition that does not wait comes back without a hold.
                None => Err(self.spec.timed_out(Duration::ZERO, Blame::default())),
            }
        })
    }
}

impl<G: FromHold> IntoFuture for TryAcquire<G> {
    type Output = Result<Option<G>, Error>;
    type IntoFuture = Acquiring<Option<G>>;

    fn into_future(mut self) -> Acquiring<Option<G>> {
        self.0.spec.wait = false;
        let owner = self.0.spec.owner();
        Box::pin(async move {
            let hold = acquire(&self.0.client, &self.0.spec, owner).await?;
            Ok(hold.map(G::from_hold))
        })
    }
}

impl Spec {
    pub(crate) fn new(lock: &RwLock, mode: Mode) -> Self {
        Self {
            name: lock.name.clone(),
            mode,
            owner: None,
            timeout: None,
            lease: None,
            max_hold: None,
            cap: Moment::FAR,
            label: String::new(),
            wait: true,
            keep_until_dropped: false,
            first: lock.first,
            spin: None,
            replicas: None,
            upgrade_of: None,
        }
    }

    /// The owner is settled where the acquisition is awaited, not where it is polled. Without one it gets one of its own.
    fn owner(&self) -> Option<Owner> {
        self.owner.clone().or_else(Owner::current)
    }

    fn check(&self) -> Result<(), Error> {
        if let Some(lease) = self.lease {
            check_lease("lease", lease)?;
        }
        if let Some(max_hold) = self.max_hold {
            check_lease("max_hold", max_hold)?;
        }
        if let Some(spin) = self.spin {
            spin.check()?;
        }
        if let Some(Some(replicas)) = self.replicas {
            check_replicas(replicas.within)?;
        }
        if self.label.len() > MAX_LABEL {
            return Err(ErrorKind::Invalid(format!(
                "a label has {} bytes; {MAX_LABEL} are allowed",
                self.label.len()
            ))
            .into());
        }
        Ok(())
    }

    fn wanted(&self, core: &Core, member: Member, keep: Keep) -> Wanted {
        Wanted {
            name: self.name.clone(),
            member,
            mode: self.mode,
            flow: None,
            keep,
            label: self.label.clone(),
            upgrade_of: self.upgrade_of,
            asked: core.clock.now(),
            patient: self.timeout.is_some(),
            spin: self.spin.or(core.config.spin),
        }
    }

    fn call(&self, member: Member, keep: Keep, wait: bool) -> AcquireCall {
        AcquireCall {
            request: member.request,
            owner: member.owner,
            mode: self.mode,
            wait,
            first: self.first,
            lease_ms: millis(keep.lease),
            ticket: 0,
            upgrade_of: self.upgrade_of,
            label: self.label.clone(),
        }
    }

    fn keep(&self, core: &Core) -> Keep {
        let lease = self.lease.unwrap_or(core.config.lease);
        let left = self.cap.since(core.clock.now()).max(Duration::from_millis(1));
        Keep {
            lease: self.max_hold.map_or(lease, |max| lease.min(max)).min(left),
            fixed: self.lease.is_some(),
            max_hold: self.max_hold,
            until_dropped: self.keep_until_dropped,
            cap: self.cap,
            replicas: self.replicas.unwrap_or(core.config.replicas_wanted()),
        }
    }

    pub(crate) fn timed_out(&self, waited: Duration, blame: Blame) -> Error {
        ErrorKind::Timeout {
            name: self.name.as_str().into(),
            mode: self.mode,
            waited,
            blame,
        }
        .into()
    }
}

/// A request that the server may know of. Dropping it withdraws the request.
struct Pending<'a> {
    core: &'a Core,
    spec: &'a Spec,
    member: Member,
    lease: Duration,
    armed: bool,
}

impl Pending<'_> {
    /// It is granted, or it is known that the server has nothing of it.
    fn settled(&mut self) {
        self.armed = false;
        self.core.waiters.forget(self.member.request);
    }

    /// The server has nothing of it. If it was sent more than once a copy may still arrive: then it is withdrawn.
    fn answered(&mut self, resent: bool) {
        if !resent {
            self.settled();
        }
    }

    /// It was granted by way of the line. A guard if that is still so; else what a copy may have been granted since is
    /// withdrawn.
    fn taken(&mut self, held: Arc<Held>, resent: bool) -> Attempt {
        if held.end(self.core.clock.now()).is_some() {
            return Attempt::Spent;
        }
        if resent {
            held.mark();
        }
        self.settled();
        Attempt::Granted(held)
    }

    /// Leaves, and hears who was in the way if the server says so soon.
    fn withdraw(&mut self) -> oneshot::Receiver<Withdrawn> {
        let (tell, told) = oneshot::channel();
        self.leave(Some(tell));
        told
    }

    fn leave(&mut self, tell: Option<oneshot::Sender<Withdrawn>>) {
        self.armed = false;
        let Self { core, spec, .. } = self;
        // Handed over before it is forgotten: a client that ends meanwhile finds it in the one place or in the other.
        core.reaper
            .withdraw(core, &spec.name, self.member, spec.upgrade_of, self.lease, tell);
        core.waiters.forget(self.member.request);
        // It may have been granted by a push that nobody took.
        core.watchdog.forget(self.member.request);
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.leave(None);
        }
    }
}

/// Acquires, one way or another. `None` when it does not wait and somebody is in the way.
pub(crate) async fn acquire(
    client: &Arc<Handle>,
    spec: &Spec,
    mut owner: Option<Owner>,
) -> Result<Option<Hold>, Error> {
    spec.check()?;
    let core: &Core = client;
    let begun = core.clock.now();
    let watched = Watched::new(&core.clock, spec.name.as_str(), spec.mode, begun, &spec.label);
    let obtained = within(
        &watched.span,
        pin!(obtain(core, spec, &mut owner, begun, &watched)),
    )
    .await;
    match obtained {
        Ok(Some(held)) => {
            watched.granted(&held);
            Ok(Some(Hold::new(client.clone(), held)))
        }
        Ok(None) => {
            watched.busy();
            Ok(None)
        }
        Err(error) => {
            watched.failed(&error, owner.as_ref());
            Err(error)
        }
    }
}

async fn obtain(
    core: &Core,
    spec: &Spec,
    owner: &mut Option<Owner>,
    begun: Moment,
    watched: &Watched<'_>,
) -> Result<Option<Arc<Held>>, Error> {
    let deadline = spec.timeout.map_or(Moment::FAR, |timeout| begun.plus(timeout));
    // An owner that is made for this request has dropped nothing.
    if let (Some(owner), None) = (&owner, spec.upgrade_of) {
        returned(core, &spec.name, owner, deadline).await;
    }
    loop {
        match attempt(core, spec, owner, begun, deadline, watched).await? {
            Attempt::Granted(held) => return Ok(Some(held)),
            Attempt::Busy => return Ok(None),
            // What was granted ended before we heard of it: that request is spent, a new one is made.
            Attempt::Spent => {
                if let Some(request) = spec.upgrade_of {
                    tokio::select! {
                        biased;
                        () = core.reaper.undone(request) => {}
                        // The next attempt says that the time is over.
                        () = core.clock.sleep_until(deadline) => {}
                    }
                }
            }
        }
    }
}

/// What an owner has dropped is given back before it asks again: it would count as held, and a writer be refused for its own read.
async fn returned(core: &Core, name: &Name, owner: &Owner, deadline: Moment) {
    let patience = core.clock.now().plus(core.config.response_timeout);
    tokio::select! {
        biased;
        () = core.reaper.returned(name, owner.id()) => {}
        // The attempt finds out whether the server answers.
        () = core.clock.sleep_until(patience.min(deadline)) => {}
    }
}

/// What became of several acquisitions at once.
pub(crate) enum AtOnce {
    Granted(Vec<Hold>),
    /// One of them could not be had; none was taken.
    Busy,
    /// They can't be taken in one step.
    Apart,
}

/// Acquires all of these in one step, or none, without waiting for anybody. `deadline`: of whoever would wait then.
pub(crate) async fn acquire_at_once(
    client: &Arc<Handle>,
    specs: &[Spec],
    owner: &Owner,
    deadline: Option<Moment>,
) -> Result<AtOnce, Error> {
    let core: &Core = client;
    let begun = core.clock.now();
    let watched: Vec<Watched<'_>> = specs
        .iter()
        .map(|spec| Watched::new(&core.clock, spec.name.as_str(), spec.mode, begun, &spec.label))
        .collect();
    watched.iter().for_each(|watched| watched.owner(owner));
    let outcome = obtain_at_once(client, specs, owner, deadline).await;
    match &outcome {
        Ok(AtOnce::Granted(holds)) => {
            for (watched, hold) in watched.into_iter().zip(holds) {
                watched.granted(hold.held());
            }
        }
        Ok(AtOnce::Busy) if specs.iter().all(|spec| !spec.wait) => {
            watched.into_iter().for_each(Watched::busy);
        }
        // They are acquired one by one, and told by that.
        Ok(AtOnce::Busy | AtOnce::Apart) => watched.into_iter().for_each(Watched::disregard),
        Err(error) => {
            for watched in watched {
                watched.failed(error, Some(owner));
            }
        }
    }
    outcome
}

async fn obtain_at_once(
    client: &Arc<Handle>,
    specs: &[Spec],
    owner: &Owner,
    deadline: Option<Moment>,
) -> Result<AtOnce, Error> {
    let core: &Core = client;
    if core.is_ending() {
        return Err(ErrorKind::Closed.into());
    }
    let now = core.clock.now();
    let patience = match deadline {
        Some(deadline) if deadline > now => deadline,
        None if specs.iter().all(|spec| spec.wait) => now.plus(core.config.patience),
        // One question and its answer; a link that is found dead is replaced meanwhile.
        _ => now.plus(core.config.response_timeout.saturating_mul(2)),
    };
    for spec in specs {
        returned(core, &spec.name, owner, patience).await;
    }
    let mut pendings = Vec::with_capacity(specs.len());
    let mut parts = Vec::with_capacity(specs.len());
    for spec in specs {
        spec.check()?;
        let keep = spec.keep(core);
        let member = Member {
            request: core.next_request(),
            owner: owner.id(),
        };
        // Whoever ends the client meanwhile finds it there.
        let told = core.waiters.expect(spec.wanted(core, member, keep))?;
        pendings.push((
            Pending {
                core,
                spec,
                member,
                lease: keep.lease,
                armed: true,
            },
            keep,
            told,
        ));
        parts.push((spec.name.clone(), spec.call(member, keep, false)));
    }
    let mut resent = false;
    let heard = loop {
        let outcome = tokio::select! {
            biased;
            outcome = core.backend.acquire_all(&parts) => outcome,
            () = core.clock.sleep_until(patience) => {
                let name = specs.first().map_or(&parts[0].0, |spec| &spec.name);
                return Err(core.unreachable(name));
            }
        };
        match outcome {
            Ok(Together::Granted(heard)) => break heard,
            Ok(none) => {
                // If it was sent twice, the first may have been granted, and one of them have ended since: then they are withdrawn.
                for (pending, ..) in &mut pendings {
                    pending.answered(resent);
                }
                return match none {
                    Together::Not(WhyNot::Refused(at)) => {
                        let spec = specs.get(at).ok_or_else(crate::client::unexpected)?;
                        Err(ErrorKind::SelfLock {
                            name: spec.name.as_str().into(),
                            mode: spec.mode,
                        }
                        .into())
                    }
                    Together::Apart => Ok(AtOnce::Apart),
                    _ => Ok(AtOnce::Busy),
                };
            }
            // A server that says no in the middle may have begun: they are withdrawn.
            Err(Failure::No(error)) => return Err(error),
            Err(Failure::Unknown(_)) => {
                resent = true;
                core.pause().await;
            }
        }
    };
    let mut helds = Vec::with_capacity(specs.len());
    let mut holds = Vec::with_capacity(specs.len());
    for ((mut pending, keep, _told), heard) in pendings.into_iter().zip(heard) {
        core.hear(&heard);
        let Reply::Acquire(Acquired::Granted(grant)) = heard.answer.reply else {
            return Err(ErrorKind::Server("the server answered something else than was asked".into()).into());
        };
        let granting = Granting {
            name: pending.spec.name.clone(),
            member: pending.member,
            fence: grant.fence,
            depth: grant.depth,
            keep,
            label: pending.spec.label.clone(),
            upgrade_of: None,
            resent,
            until: core.deadline(&heard, grant.deadline_ms),
            claimed: false,
        };
        let Some(held) = core.waiters.keep(core, granting) else {
            return Err(ErrorKind::Closed.into());
        };
        pending.settled();
        helds.push(held.clone());
        holds.push(Hold::new(client.clone(), held));
    }
    // The first waits for what the others find done. An error, or one that is lost meanwhile, gives all of them back.
    for held in &helds {
        if !replicated(core, held).await? {
            return Ok(AtOnce::Busy);
        }
    }
    Ok(AtOnce::Granted(holds))
}

enum Attempt {
    Granted(Arc<Held>),
    Busy,
    Spent,
}

async fn attempt(
    core: &Core,
    spec: &Spec,
    owner: &mut Option<Owner>,
    begun: Moment,
    deadline: Moment,
    watched: &Watched<'_>,
) -> Result<Attempt, Error> {
    if core.is_ending() {
        return Err(ErrorKind::Closed.into());
    }
    let keep = spec.keep(core);
    let request = core.next_request();
    let owner = owner.get_or_insert_with(|| Owner::from_id(OwnerId::of(request)));
    watched.owner(owner);
    let member = Member {
        request,
        owner: owner.id(),
    };
    let mut wanted = spec.wanted(core, member, keep);
    let mut pending = Pending {
        core,
        spec,
        member,
        lease: keep.lease,
        armed: true,
    };
    let mut call = Call {
        name: spec.name.clone(),
        // A timeout of nothing is answered at once; being put in line only to leave it again would disturb the line.
        operation: Operation::Acquire(spec.call(
            member,
            keep,
            spec.wait && spec.timeout != Some(Duration::ZERO),
        )),
    };
    let mut resent = false;
    let mut last = None;
    loop {
        let mut told = core.waiters.expect(wanted.clone())?;
        let patience = match spec.timeout {
            Some(timeout) if !timeout.is_zero() => deadline,
            None if spec.wait => core.clock.now().plus(core.config.patience),
            // One question and its answer; a link that is found dead is replaced meanwhile.
            _ => begun.plus(core.config.response_timeout.saturating_mul(2)),
        };
        let heard = loop {
            let outcome = tokio::select! {
                biased;
                outcome = core.backend.call(&call) => outcome,
                () = core.clock.sleep_until(patience) => {
                    return Err(core.unanswered(&spec.name, last));
                }
            };
            match outcome {
                Ok(heard) => break heard,
                Err(Failure::No(error)) => {
                    // It did not happen, but an earlier copy of it may have.
                    pending.answered(resent);
                    return Err(error);
                }
                Err(Failure::Unknown(error)) => {
                    tracing::debug!(name = %spec.name, %error, "an acquisition was not answered; asking again");
                    resent = true;
                    last = Some(error);
                    core.pause().await;
                }
            }
        };
        core.hear(&heard);
        let Reply::Acquire(reply) = &heard.answer.reply else {
            return Err(ErrorKind::Server("the server answered something else than was asked".into()).into());
        };
        match *reply {
            Acquired::Granted(grant) => {
                let granting = Granting {
                    name: spec.name.clone(),
                    member,
                    fence: grant.fence,
                    depth: grant.depth,
                    keep,
                    label: spec.label.clone(),
                    upgrade_of: spec.upgrade_of,
                    resent,
                    until: core.deadline(&heard, grant.deadline_ms),
                    // A grant by way of the line that was first heard of here lasts for a claim only.
                    claimed: resent,
                };
                if let Some(held) = core.waiters.keep(core, granting) {
                    if !replicated(core, &held).await? {
                        return Ok(Attempt::Spent);
                    }
                    pending.settled();
                    return Ok(Attempt::Granted(held));
                }
                return match told.try_recv() {
                    // It had waited in line; the push was seen before this reply.
                    Ok(Outcome::Granted(held)) => {
                        replicated(core, &held).await?;
                        // If it has been lost meanwhile, it is spent.
                        Ok(pending.taken(held, resent))
                    }
                    Ok(Outcome::Failed(error)) => Err(error),
                    _ => Err(ErrorKind::Closed.into()),
                };
            }
            Acquired::Busy => {
                if spec.wait {
                    pending.answered(resent);
                    let blame = Box::pin(blame_now(core, &spec.name, member.owner)).await;
                    return Err(spec.timed_out(core.clock.now().since(begun), blame));
                }
                pending.answered(resent);
                return Ok(Attempt::Busy);
            }
            Acquired::Refused if spec.first => {
                pending.answered(resent);
                return Err(ErrorKind::SelfLock {
                    name: spec.name.as_str().into(),
                    mode: spec.mode,
                }
                .into());
            }
            Acquired::Refused => {
                pending.answered(resent);
                return Err(ErrorKind::Refused {
                    name: spec.name.as_str().into(),
                    mode: spec.mode,
                }
                .into());
            }
            Acquired::Ended(ending) => {
                pending.answered(resent);
                return match (spec.upgrade_of, ending) {
                    (Some(_), ending) => Err(ErrorKind::Lost {
                        name: spec.name.as_str().into(),
                        cause: LostCause::of(ending),
                    }
                    .into()),
                    (None, Ending::Withdrawn) => Err(ErrorKind::Closed.into()),
                    (None, _) => Ok(Attempt::Spent),
                };
            }
            Acquired::Queued { ticket, wake_ms } => {
                core.waiters.queued(core, member.request, &heard, wake_ms);
                wanted.flow = Some(Flow::current());
                core.waiters.waits(member.request, wanted.flow);
                let _in_line = InLine::new();
                // What it would close is looked for only where it is refused. In a box, as what is rare must not make every acquisition larger.
                let refused = async {
                    match core.config.refuse_deadlocks {
                        true => Box::pin(deadlock::closed_by(core, member.request)).await,
                        false => std::future::pending().await,
                    }
                };
                let outcome = tokio::select! {
                    biased;
                    outcome = &mut told => outcome,
                    () = core.clock.sleep_until(deadline) => {
                        wanted.warn_of_itself(core);
                        let blame = Box::pin(blame(&mut pending)).await;
                        return Err(spec.timed_out(core.clock.now().since(begun), blame));
                    }
                    circle = refused => {
                        return Err(ErrorKind::Deadlock {
                            name: spec.name.as_str().into(),
                            mode: spec.mode,
                            circle,
                        }
                        .into());
                    }
                };
                match outcome {
                    Ok(Outcome::Granted(held)) => {
                        replicated(core, &held).await?;
                        return Ok(pending.taken(held, resent));
                    }
                    Ok(Outcome::Failed(error)) => return Err(error),
                    Ok(Outcome::Gone(Ending::Unknown | Ending::Forgotten)) => {
                        // The server has lost it, or passed us over while we did not hear. Ask again, for the same place.
                        resent = true;
                        if let Operation::Acquire(acquire) = &mut call.operation {
                            acquire.ticket = ticket;
                        }
                    }
                    Ok(Outcome::Gone(_)) => {
                        pending.settled();
                        return Ok(Attempt::Spent);
                    }
                    Err(_) => return Err(ErrorKind::Closed.into()),
                }
            }
        }
    }
}

/// Waits until as many replicas know of the hold as its acquisition asks for. The hold is in the watchdog's care meanwhile; an error gives
/// it back. Whether it is still held: what was revoked, or what the server has lost, is acquired anew.
async fn replicated(core: &Core, held: &Held) -> Result<bool, Error> {
    let Some(replicas) = held.keep.replicas else {
        return Ok(true);
    };
    // A link that ends is asked again when it is back; a server that does not even answer is found by then.
    let last = core.clock.now().plus(replicas.within.saturating_mul(2));
    let last = last.plus(core.config.response_timeout);
    loop {
        let outcome = tokio::select! {
            biased;
            outcome = core.backend.replicated(&held.name, held.member, replicas) => outcome,
            cause = held.lost(core) => {
                return match cause {
                    LostCause::Revoked | LostCause::Forgotten => Ok(false),
                    cause => Err(held.lost_error(cause)),
                };
            }
            () = core.clock.sleep_until(last) => return Err(core.unreachable(&held.name)),
        };
        match outcome {
            Ok((Polled::Granted(_), acknowledged)) if acknowledged >= u64::from(replicas.number) => {
                return Ok(true);
            }
            Ok((Polled::NotHeld(ending), _)) => {
                core.watchdog
                    .lose(core, held.member.request, LostCause::of(ending));
                if ending == Ending::Lapsed {
                    return Err(held.lost_error(LostCause::Lapsed));
                }
                return Ok(false);
            }
            Ok((_, acknowledged)) => {
                return Err(ErrorKind::Unreplicated {
                    name: held.name.as_str().into(),
                    wanted: replicas.number,
                    acknowledged,
                    within: replicas.within,
                }
                .into());
            }
            Err(Failure::No(error)) => return Err(error),
            Err(Failure::Unknown(_)) => core.pause().await,
        }
    }
}

/// How long a wait that ran out is kept to hear who was in the way, and of which processes they are.
const BLAME_WITHIN: Duration = Duration::from_millis(250);

/// Leaves the line, and tells who was in the way, as far as can be heard soon.
async fn blame(pending: &mut Pending<'_>) -> Blame {
    let (core, member) = (pending.core, pending.member);
    // The line is looked at before it is left: those before us in it were ahead.
    let look = Call {
        name: pending.spec.name.clone(),
        operation: Operation::Inspect(BLAME_ROWS + 1),
    };
    let mut line = std::pin::pin!(core.backend.call(&look).fuse());
    let seen = line.as_mut().now_or_never();
    let told = pending.withdraw();
    let ask = async {
        let withdrawn = told.await.ok()?;
        let seen = match seen {
            _ if withdrawn.ahead == 0 => None,
            Some(seen) => Some(seen),
            None => Some(line.await),
        };
        let line = match seen {
            Some(Ok(heard)) => line_of(heard),
            _ => Vec::new(),
        };
        let mut ahead: Vec<WaitRow> = line
            .into_iter()
            .take_while(|row| row.request != member.request)
            .collect();
        ahead.truncate(
            usize::try_from(withdrawn.ahead)
                .unwrap_or(usize::MAX)
                .min(BLAME_ROWS),
        );
        Some((withdrawn.blame, withdrawn.ahead, ahead))
    };
    describe(core, ask, member.owner).await
}

fn line_of(heard: Heard) -> Vec<WaitRow> {
    match heard.answer.reply {
        Reply::Inspect(snapshot) => snapshot.waiting,
        _ => Vec::new(),
    }
}

/// The same for a request that never stood in line.
async fn blame_now(core: &Core, name: &Name, asking: OwnerId) -> Blame {
    let call = Call {
        name: name.clone(),
        operation: Operation::Inspect(BLAME_ROWS),
    };
    let ask = async {
        match core.backend.call(&call).await.ok()?.answer.reply {
            Reply::Inspect(mut snapshot) => {
                let line = std::mem::take(&mut snapshot.waiting);
                let ahead = snapshot.waiters;
                Some((snapshot, ahead, line))
            }
            _ => None,
        }
    };
    describe(core, ask, asking).await
}

/// Waits for who is in the way, how many are ahead, and the first of these; then for who they are. What does not come soon is left out, and
/// takes nothing that is known with it: in a cluster another server may be the one that knows of a process.
async fn describe(
    core: &Core,
    ask: impl Future<Output = Option<(Snapshot, u64, Vec<WaitRow>)>>,
    asking: OwnerId,
) -> Blame {
    let until = core.clock.now().plus(BLAME_WITHIN);
    let seen = tokio::select! {
        biased;
        seen = ask => seen,
        () = core.clock.sleep_until(until) => None,
    };
    let Some((mut snapshot, ahead, line)) = seen else {
        return Blame::default();
    };
    // An upgrade is not in its own way.
    if snapshot.holding.iter().any(|row| row.owner == asking) {
        snapshot.holding.retain(|row| row.owner != asking);
        snapshot.holders = snapshot.holders.saturating_sub(1);
    }
    let holding = snapshot.holding.iter().map(|row| row.request.client);
    let ids: Vec<_> = holding.chain(line.iter().map(|row| row.request.client)).collect();
    let mut clients = tokio::select! {
        biased;
        clients = core.who(&ids) => clients,
        () = core.clock.sleep_until(until) => Vec::new(),
    };
    clients.resize(ids.len(), None);
    let of_line = clients.split_off(snapshot.holding.len());
    Blame {
        holders: rows_of(core, &snapshot, &clients),
        holder_count: snapshot.holders,
        ahead,
        ahead_in_line: rows_of_line(core, &line, &of_line),
    }
}

/// Rows of a line with what is known of their processes.
pub(crate) async fn waiters(core: &Core, line: &[WaitRow]) -> Vec<Waiting> {
    if line.is_empty() {
        return Vec::new();
    }
    let ids: Vec<_> = line.iter().map(|row| row.request.client).collect();
    rows_of_line(core, line, &core.who(&ids).await)
}

fn rows_of_line(core: &Core, line: &[WaitRow], clients: &[Option<ClientInfo>]) -> Vec<Waiting> {
    let now_ms = core.server_now_ms();
    line.iter()
        .enumerate()
        .map(|(at, row)| Waiting {
            owner: Owner::from_id(row.owner),
            request: row.request.to_string(),
            mode: row.mode,
            waited: Duration::from_millis(now_ms.saturating_sub(row.since_ms)),
            label: (!row.label.is_empty()).then(|| row.label.clone()),
            client: clients.get(at).cloned().flatten(),
            connected: None,
        })
        .collect()
}

/// The holders of a snapshot with what is known of their processes.
pub(crate) async fn holders(core: &Core, snapshot: &Snapshot) -> Vec<Holder> {
    let ids: Vec<_> = snapshot.holding.iter().map(|row| row.request.client).collect();
    rows_of(core, snapshot, &core.who(&ids).await)
}

fn rows_of(core: &Core, snapshot: &Snapshot, clients: &[Option<ClientInfo>]) -> Vec<Holder> {
    // The server's time now is near enough to when the snapshot was made.
    let now_ms = core.server_now_ms();
    snapshot
        .holding
        .iter()
        .enumerate()
        .map(|(at, row)| Holder {
            owner: Owner::from_id(row.owner),
            request: row.request.to_string(),
            mode: row.mode,
            held_for: Duration::from_millis(now_ms.saturating_sub(row.since_ms)),
            lease_left: Duration::from_millis(row.deadline_ms.saturating_sub(now_ms)),
            revoked: row.revoked,
            label: (!row.label.is_empty()).then(|| row.label.clone()),
            client: clients.get(at).cloned().flatten(),
            connected: None,
        })
        .collect()
}
