//! Several names at once: all or none.
//!
//! Where one server and one slot has all of them they are taken in one step, if nobody is in the way. Otherwise the names are taken one after the other, in the order of their bytes, whatever order the caller gives, each once, in the strongest mode that is asked for. So
//! among those who take theirs like this nobody waits for somebody who waits for him: whoever holds the greatest name that anybody
//! waits for does not wait for a name that another holds. What is given up on the way gives everything back.

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;

use crate::clock::Moment;
use crate::core::{Core, Handle};
use crate::error::{Error, ErrorKind, LostCause};
use crate::fenced::Stamp;
use crate::guard::Hold;
use crate::lock::{Acquire, Acquiring, AtOnce, RwLock, Spec, acquire, acquire_at_once};
use crate::owner::Owner;
use crate::protocol::Mode;

/// One of the acquisitions of a [`Multi`]: made of an [`Acquire`] by `into()`, where they come in a list and are of different modes.
#[derive(Clone)]
pub struct Part {
    client: Arc<Handle>,
    spec: Spec,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.spec, f)
    }
}

impl<G> From<Acquire<G>> for Part {
    fn from(acquire: Acquire<G>) -> Self {
        Self {
            client: acquire.client,
            spec: acquire.spec,
        }
    }
}

/// What [`Relatch::multi`](crate::Relatch::multi) takes: a tuple of up to eight acquisitions of any modes; an array or a vector of
/// acquisitions of one mode, or of [`Part`]s.
pub trait Parts {
    /// One after the other.
    fn into_parts(self) -> Vec<Part>;
}

impl<P: Into<Part>> Parts for Vec<P> {
    fn into_parts(self) -> Vec<Part> {
        self.into_iter().map(Into::into).collect()
    }
}

impl<P: Into<Part>, const N: usize> Parts for [P; N] {
    fn into_parts(self) -> Vec<Part> {
        self.into_iter().map(Into::into).collect()
    }
}

macro_rules! tuples {
    ($($($part:ident)+;)*) => { $(
        impl<$($part: Into<Part>),+> Parts for ($($part,)+) {
            #[allow(non_snake_case, reason = "a name for each type")]
            fn into_parts(self) -> Vec<Part> {
                let ($($part,)+) = self;
                vec![$($part.into()),+]
            }
        }
    )* };
}

tuples! {
    A;
    A B;
    A B C;
    A B C D;
    A B C D E;
    A B C D E F;
    A B C D E F G;
    A B C D E F G H;
}

/// An acquisition of several names, all or none: await it for the [`MultiGuard`].
///
/// They are taken in the order of their names, whatever order they are given in, so that two of these can't wait for each other; they can with
/// who takes names one by one in another order. A name that is given more than once is taken once, in the strongest of its modes, and with what was said of any of its parts (a lease, a label and so on). All have one owner and one timeout.
/// While it waits for a name it holds those before it. Where one step can't take them (names in several slots of a cluster, or more than 128), that is so
/// without a wait, too: one that is refused is found out when those before it are held, and they are given back.
///
/// # Errors
///
/// As [`Acquire`]; the blame of a timeout is about the name that was not to be had. And
/// [`is_invalid`](Error::is_invalid) for a part with an owner or a timeout of its own, or of another client, and for parts of one name of which different things were said;
/// [`is_lost`](Error::is_lost) when one of the holds was lost while the others were waited for.
///
/// # Cancel safety
///
/// Dropping the future leaves nothing behind: no hold, no place in line.
///
/// # Examples
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use relatch::Relatch;
/// use std::time::Duration;
///
/// let relatch = Relatch::embedded();
/// let (from, to, rates) = (relatch.rwlock("account-1")?, relatch.rwlock("account-2")?, relatch.rwlock("rates")?);
/// let all = relatch
///     .multi((from.write(), to.write(), rates.read()))
///     .timeout(Duration::from_secs(2))
///     .await?;
/// assert!(all.is_held());
/// assert!(all.fence("account-1").is_some());
/// all.release().await?;
/// # Ok::<(), relatch::Error>(()) }).unwrap();
/// ```
#[must_use = "an acquisition does nothing until it is awaited"]
pub struct Multi {
    pub(crate) client: Arc<Handle>,
    specs: Result<Vec<Spec>, Error>,
    pub(crate) owner: Option<Owner>,
    timeout: Option<Duration>,
}

/// A [`Multi`] that does not wait: await it for the guard, or `None` if somebody is in the way of one of them.
///
/// # Errors
///
/// As [`Multi`], but never a timeout: that is `None`. A refusal only of a part that does [not re-enter](RwLock::non_reentrant).
///
/// # Cancel safety
///
/// As [`Multi`].
#[must_use = "an acquisition does nothing until it is awaited"]
#[derive(Debug)]
pub struct TryMulti(pub(crate) Multi);

impl fmt::Debug for Multi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Multi")
            .field("parts", &self.specs)
            .field("owner", &self.owner)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Multi {
    pub(crate) fn new(client: Arc<Handle>, parts: Vec<Part>) -> Self {
        Self {
            specs: in_order(&client, parts),
            client,
            owner: None,
            timeout: None,
        }
    }

    pub(crate) fn of_locks(client: Arc<Handle>, locks: impl IntoIterator<Item = RwLock>, mode: Mode) -> Self {
        let parts = locks.into_iter().map(|lock| Part {
            spec: Spec::new(&lock, mode),
            client: lock.client,
        });
        Self::new(client, parts.collect())
    }

    /// For this owner, instead of the one of the surrounding [`Owner::scope`].
    pub fn owner(mut self, owner: &Owner) -> Self {
        self.owner = Some(owner.clone());
        self
    }

    /// Gives up after so long, for all of them together, and gives back what it has. Zero asks once and does not wait.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// A fixed lease for each of them, counted from its own grant. See [`Acquire::lease`].
    pub fn lease(self, lease: Duration) -> Self {
        self.each(|spec| spec.lease = Some(lease))
    }

    /// See [`Acquire::max_hold`]; for each of them.
    pub fn max_hold(self, max_hold: Duration) -> Self {
        self.each(|spec| spec.max_hold = Some(max_hold))
    }

    /// See [`Acquire::label`]; for each of them.
    pub fn label(self, label: impl Into<String>) -> Self {
        let label = label.into();
        self.each(|spec| spec.label.clone_from(&label))
    }

    fn each(mut self, set: impl Fn(&mut Spec)) -> Self {
        self.specs.iter_mut().flatten().for_each(set);
        self
    }

    /// Only if it can be had at once.
    pub fn at_once(self) -> TryMulti {
        TryMulti(self.each(|spec| spec.wait = false))
    }
}

impl TryMulti {
    /// See [`Multi::owner`].
    pub fn owner(self, owner: &Owner) -> Self {
        Self(self.0.owner(owner))
    }

    /// See [`Multi::lease`].
    pub fn lease(self, lease: Duration) -> Self {
        Self(self.0.lease(lease))
    }

    /// See [`Multi::max_hold`].
    pub fn max_hold(self, max_hold: Duration) -> Self {
        Self(self.0.max_hold(max_hold))
    }

    /// See [`Multi::label`].
    pub fn label(self, label: impl Into<String>) -> Self {
        Self(self.0.label(label))
    }
}

/// Each name once, in the strongest mode that is asked for, in the order of the names.
fn in_order(client: &Arc<Handle>, parts: Vec<Part>) -> Result<Vec<Spec>, Error> {
    let invalid = |why: &str, spec: &Spec| -> Error {
        ErrorKind::Invalid(format!(
            "{:?} can't be one of several acquisitions at once: {why}",
            spec.name.as_str()
        ))
        .into()
    };
    let mut specs: Vec<Spec> = Vec::with_capacity(parts.len());
    for Part { client: of, spec } in parts {
        if !Arc::ptr_eq(client, &of) {
            return Err(invalid(
                "its lock is another client's; make all of them with the client that takes them",
                &spec,
            ));
        }
        if spec.owner.is_some() {
            return Err(invalid("it has an owner of its own; name one for all", &spec));
        }
        if spec.timeout.is_some() {
            return Err(invalid("it has a timeout of its own; set one for all", &spec));
        }
        specs.push(spec);
    }
    specs.sort_by(|a, b| a.name.cmp(&b.name).then(b.mode.cmp(&a.mode)));
    let mut differs = None;
    specs.dedup_by(|weaker, kept| {
        let same = weaker.name == kept.name;
        if same && let Err(option) = take_over(kept, weaker) {
            differs.get_or_insert_with(|| {
                invalid(
                    &format!("it is given more than once, each time with another {option}; say one"),
                    kept,
                )
            });
        }
        same
    });
    differs.map_or(Ok(specs), Err)
}

/// What was said of one of two parts with the same name goes for the hold that both are. Tells of what they do not agree.
fn take_over(kept: &mut Spec, other: &mut Spec) -> Result<(), &'static str> {
    fn agree<T: PartialEq>(
        kept: &mut Option<T>,
        other: &mut Option<T>,
        option: &'static str,
    ) -> Result<(), &'static str> {
        match (&kept, other.take()) {
            (Some(kept), Some(said)) if *kept != said => return Err(option),
            (None, said) => *kept = said,
            _ => {}
        }
        Ok(())
    }
    kept.first |= other.first;
    kept.keep_until_dropped |= other.keep_until_dropped;
    agree(&mut kept.lease, &mut other.lease, "lease")?;
    agree(&mut kept.max_hold, &mut other.max_hold, "max_hold")?;
    agree(&mut kept.replicas, &mut other.replicas, "number of replicas")?;
    agree(&mut kept.spin, &mut other.spin, "back-off")?;
    if kept.label.is_empty() {
        kept.label = std::mem::take(&mut other.label);
    } else if !other.label.is_empty() && kept.label != other.label {
        return Err("label");
    }
    Ok(())
}

impl IntoFuture for Multi {
    type Output = Result<MultiGuard, Error>;
    type IntoFuture = Acquiring<MultiGuard>;

    fn into_future(self) -> Acquiring<MultiGuard> {
        // Settled where it is awaited, as for one.
        let owner = self.settled();
        Box::pin(async move {
            let specs = self.specs?;
            let first = specs.first().cloned();
            match acquire_all(&self.client, specs, &owner, self.timeout).await? {
                Some(holds) => Ok(MultiGuard::new(self.client, owner, holds)),
                // Only what does not wait comes back without a hold.
                None => Err(match first {
                    Some(spec) => spec.timed_out(Duration::ZERO, crate::Blame::default()),
                    None => ErrorKind::Closed.into(),
                }),
            }
        })
    }
}

impl IntoFuture for TryMulti {
    type Output = Result<Option<MultiGuard>, Error>;
    type IntoFuture = Acquiring<Option<MultiGuard>>;

    fn into_future(self) -> Acquiring<Option<MultiGuard>> {
        let multi = self.0;
        let owner = multi.settled();
        Box::pin(async move {
            let holds = acquire_all(&multi.client, multi.specs?, &owner, None).await?;
            Ok(holds.map(|holds| MultiGuard::new(multi.client, owner, holds)))
        })
    }
}

impl Multi {
    fn settled(&self) -> Owner {
        self.owner
            .clone()
            .or_else(Owner::current)
            .unwrap_or_else(Owner::new)
    }
}

/// All, or none and the first reason why not. What it holds when it returns without is given back by their drops.
async fn acquire_all(
    client: &Arc<Handle>,
    specs: Vec<Spec>,
    owner: &Owner,
    timeout: Option<Duration>,
) -> Result<Option<Vec<Hold>>, Error> {
    let core: &Core = client;
    let deadline = timeout.map(|timeout| core.clock.now().plus(timeout));
    // Nobody is in the way, as a rule: then one step takes all of them.
    if specs.len() > 1 {
        match acquire_at_once(client, &specs, owner, deadline).await? {
            AtOnce::Granted(holds) => return Ok(Some(holds)),
            AtOnce::Busy if specs.iter().all(|spec| !spec.wait) => return Ok(None),
            _ => {}
        }
    }
    one_by_one(client, specs, owner, deadline).await
}

/// In the order of their names, each waited for while those before it are held.
async fn one_by_one(
    client: &Arc<Handle>,
    specs: Vec<Spec>,
    owner: &Owner,
    deadline: Option<Moment>,
) -> Result<Option<Vec<Hold>>, Error> {
    let core: &Core = client;
    let mut holds: Vec<Hold> = Vec::with_capacity(specs.len());
    for mut spec in specs {
        spec.timeout = deadline.map(|deadline: Moment| deadline.since(core.clock.now()));
        let hold = tokio::select! {
            biased;
            hold = acquire(client, &spec, Some(owner.clone())) => hold?,
            (hold, _) = first_lost(&holds) => return Err(hold.check().err().unwrap_or_else(|| ErrorKind::Closed.into())),
        };
        match hold {
            Some(hold) => holds.push(hold),
            None => return Ok(None),
        }
    }
    // A fixed lease may have run out while the last was waited for.
    for hold in &holds {
        hold.check()?;
    }
    Ok(Some(holds))
}

/// Resolves when one of them is lost.
async fn first_lost(holds: &[Hold]) -> (&Hold, LostCause) {
    let mut lost: FuturesUnordered<_> = holds
        .iter()
        .map(|hold| async move { (hold, hold.lost().await) })
        .collect();
    match lost.next().await {
        Some(first) => first,
        None => std::future::pending().await,
    }
}

/// Holds on several names, that stand and fall together. Dropping it gives all of them back.
///
/// A part that is lost loses the whole: [`is_held`](Self::is_held) turns false, [`lost`](Self::lost) resolves. The others go on keeping others out until the guard is released or dropped.
#[must_use = "dropping a guard gives its holds back at once"]
pub struct MultiGuard {
    client: Arc<Handle>,
    owner: Owner,
    /// In the order of their names.
    holds: Vec<Hold>,
}

impl fmt::Debug for MultiGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MultiGuard")
            .field("names", &self.names().collect::<Vec<_>>())
            .field("owner", &self.owner)
            .field("is_held", &self.is_held())
            .finish()
    }
}

/// Which part of a [`MultiGuard`] was lost, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LostPart {
    /// The name.
    pub name: String,
    /// How.
    pub cause: LostCause,
}

impl fmt::Display for LostPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.name, self.cause)
    }
}

impl MultiGuard {
    fn new(client: Arc<Handle>, owner: Owner, holds: Vec<Hold>) -> Self {
        Self { client, owner, holds }
    }

    pub(crate) fn client(&self) -> Arc<Handle> {
        self.client.clone()
    }

    /// An error if one of them is lost.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.holds.iter().try_for_each(Hold::check)
    }

    /// The names that are held, in the order of their bytes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.holds.iter().map(Hold::name)
    }

    /// Who holds.
    pub fn owner(&self) -> Owner {
        self.owner.clone()
    }

    /// The fence of one of the names; `None` for one that it does not hold. See [`WriteGuard::fence`](crate::WriteGuard::fence).
    pub fn fence(&self, name: &str) -> Option<u64> {
        let at = self.holds.binary_search_by(|hold| hold.name().cmp(name)).ok()?;
        self.holds.get(at).map(Hold::fence)
    }

    /// The version of what one of the names guards; `None` for one that it does not hold. See [`Stamp`].
    pub fn stamp(&self, name: &str) -> Option<Stamp> {
        self.fence(name).map(Stamp::new)
    }

    /// Are all of them held, for certain? By our own clock; asks nobody.
    pub fn is_held(&self) -> bool {
        self.check().is_ok()
    }

    /// How long all of them are held for certain, if nothing renews them any more: the shortest. Zero when one is lost.
    pub fn valid_for(&self) -> Duration {
        self.holds
            .iter()
            .map(Hold::valid_for)
            .min()
            .unwrap_or(Duration::MAX)
    }

    /// Resolves when the first of them is lost, and tells which. See [`WriteGuard::lost`](crate::WriteGuard::lost).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: ask again at any time.
    pub fn lost(&self) -> impl Future<Output = LostPart> + Send + use<> {
        let mut lost: FuturesUnordered<_> = self
            .holds
            .iter()
            .map(|hold| {
                let (name, lost) = (hold.name().to_owned(), hold.on_loss());
                async move {
                    let cause = lost.await;
                    LostPart { name, cause }
                }
            })
            .collect();
        async move {
            match lost.next().await {
                Some(part) => part,
                None => std::future::pending().await,
            }
        }
    }

    /// Runs `work`, and ends it when one of the holds is lost.
    ///
    /// # Errors
    ///
    /// [`is_lost`](Error::is_lost): one was lost before `work` was done, and `work` was dropped where it was.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `work`.
    pub async fn protect<F: Future>(&self, work: F) -> Result<F::Output, Error> {
        tokio::select! {
            biased;
            (hold, cause) = first_lost(&self.holds) => Err(hold.lost_error(cause)),
            output = work => Ok(output),
        }
    }

    /// A script for the Redis server that keeps the locks, which it runs only if *all* of these holds stand, in one step: await the result, or give it
    /// keys and arguments first. In a cluster the names must be in one slot: begin them with the same tag in braces. See
    /// [`FencedScript`](crate::FencedScript).
    ///
    /// ```no_run
    /// # async fn f() -> Result<(), relatch::Error> {
    /// use relatch::{FencedScript, Relatch};
    ///
    /// let relatch = Relatch::connect("redis://127.0.0.1:6379").await?;
    /// let (from, to) = (relatch.rwlock("{bank}alice")?, relatch.rwlock("{bank}bob")?);
    /// let transfer = FencedScript::new("redis.call('DECRBY', KEYS[1], ARGV[1]) return redis.call('INCRBY', KEYS[2], ARGV[1])");
    /// let both = relatch.multi((from.write(), to.write())).await?;
    /// both.run(&transfer).key("{bank}alice:balance").key("{bank}bob:balance").arg("30").await?;
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "redis")]
    pub fn run(&self, script: &crate::FencedScript) -> crate::FencedRun {
        crate::FencedRun::new(self.client(), &self.holds, script)
    }

    /// Gives all of them back, and says whether all were still there to be given.
    ///
    /// # Errors
    ///
    /// As [`WriteGuard::release`](crate::WriteGuard::release), for the first that was not; the others are given back all the same.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the release to the background: nothing is left behind.
    pub async fn release(self) -> Result<(), Error> {
        let released = join_all(self.holds.into_iter().map(Hold::release)).await;
        released.into_iter().collect()
    }
}
