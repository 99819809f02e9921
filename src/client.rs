//! [`Relatch`]: connect, hand out locks, look at them, end.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::Serialize;

use crate::backend::embedded::Embedded;
use crate::backend::{Failure, Sink, Told};
use crate::clock::Clock;
use crate::config::{Backoff, Config, Tls};
use crate::core::{Core, Handle, Home};
use crate::deadlock::{self, Deadlocks};
use crate::error::{Error, ErrorKind, Holder};
use crate::lock::{RwLock, holders, waiters};
use crate::looking::{Changes, Names};
use crate::multi::{Multi, Parts, TryMulti};
use crate::mutex::Mutex;
use crate::owner::Owner;
use crate::protocol::{Answer, Call, ClientInfo, Mode, Name, Operation, Push, Reply, Revoke, Revoking};
#[cfg(feature = "redis")]
use crate::state::Tuning;
use crate::striped::Striped;

/// A client: one connection to where the locks are kept, shared by all locks made from it.
///
/// Cheap to clone. When the last clone, lock, guard and future of a client is gone, it gives back what is left in the background;
/// [`close`](Self::close) waits for that.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use relatch::Relatch;
///
/// let relatch = Relatch::embedded();
/// let lock = relatch.rwlock("catalog")?;
/// let read = lock.read().await?;
/// read.release().await?;
/// relatch.close().await?;
/// # Ok::<(), relatch::Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Relatch {
    pub(crate) client: Arc<Handle>,
}

impl fmt::Debug for Relatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relatch")
            .field("client", &self.client.id)
            .finish_non_exhaustive()
    }
}

impl Relatch {
    /// Over a backend of a test's, or a simulation's, own.
    #[cfg(any(test, feature = "cli"))]
    pub(crate) fn of(client: Arc<Handle>) -> Self {
        Self { client }
    }

    /// A client with a lock server of its own inside this process: it excludes nobody outside it. Needs no runtime to be
    /// made, as it starts a thread of its own, nor to be waited for: its timers are there.
    ///
    /// # Panics
    ///
    /// If the system can't start a thread; [`Builder::embedded`] returns that as an error.
    pub fn embedded() -> Self {
        #[allow(
            clippy::expect_used,
            reason = "documented; the defaults are valid, so only a thread can be missing"
        )]
        Self::builder()
            .embedded()
            .expect("a thread for an embedded client")
    }

    /// Connects to where [`Config::url`] says, such as `redis://[[user]:password@]host[:port][/database]`.
    ///
    /// # Errors
    ///
    /// [`is_invalid`](Error::is_invalid) for an address that can't be used, [`is_unreachable`](Error::is_unreachable) when nobody
    /// answers there, [`is_server`](Error::is_server) when the server wants a password, is too old, or is no Redis server.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves no connection behind.
    #[cfg(feature = "redis")]
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::builder().url(url).connect().await
    }

    /// Sets more than an address.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Runs `work` on this thread, which blocks until it is done: the way for a thread to whatever is async here. To acquire there is
    /// [`Acquire::wait`](crate::Acquire::wait), where the thread is the owner; here it is not. See [`blocking`](crate::blocking).
    ///
    /// What `work` spawns goes to the Tokio runtime with many threads that this is called in. Anywhere else there is none that could run it meanwhile: then it
    /// goes to the client's own thread, where it must not block, and *ends when the client does*. Name a [`Handle`](tokio::runtime::Handle) of your
    /// own runtime to spawn what is to live on.
    ///
    /// # Errors
    ///
    /// Those of `work`; and [`is_invalid`](Error::is_invalid) when this client has no thread of its own, or this is a client's own thread.
    ///
    /// ```
    /// let relatch = relatch::Relatch::embedded();
    /// let _held = relatch.rwlock("catalog")?.write().wait()?;
    /// assert_eq!(relatch.block_on(relatch.inspect("catalog"))?.holder_count, 1);
    /// relatch.block_on(relatch.close())
    /// # ; Ok::<(), relatch::Error>(())
    /// ```
    pub fn block_on<T, E: From<Error>>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        crate::blocking::wait_for_theirs(&self.client, work)?
    }

    /// A lock on a name: any UTF-8 string of 1 to 512 bytes. Cheap; asks nobody.
    ///
    /// # Errors
    ///
    /// [`is_invalid`](Error::is_invalid): the name is empty or too long.
    pub fn rwlock(&self, name: &str) -> Result<RwLock, Error> {
        Ok(RwLock {
            client: self.client.clone(),
            name: Name::new(name)?,
            first: false,
        })
    }

    /// A mutex on a name: the write mode of [`rwlock`](Self::rwlock), and nothing else. Cheap; asks nobody.
    ///
    /// # Errors
    ///
    /// [`is_invalid`](Error::is_invalid): the name is empty or too long.
    pub fn mutex(&self, name: &str) -> Result<Mutex, Error> {
        Ok(Mutex {
            inner: self.rwlock(name)?,
        })
    }

    /// A lock in 1 to 65,536 stripes, for keys that need not wait for each other. Cheap; asks nobody.
    ///
    /// # Errors
    ///
    /// [`is_invalid`](Error::is_invalid): the name is empty or too long, or there can't be so many stripes.
    pub fn striped(&self, name: &str, stripes: usize) -> Result<Striped, Error> {
        Striped::new(self.client.clone(), name, stripes)
    }

    /// Several names at once, all or none, of locks of this client: await the result, or first say more. See [`Multi`].
    ///
    /// One step takes them where nobody is in the way and one server and slot has them all: always on an embedded client and on a server that is no cluster; in
    /// a cluster those whose names begin with the same tag in braces, such as `{order:17}items` and `{order:17}address`.
    pub fn multi(&self, parts: impl Parts) -> Multi {
        Multi::new(self.client.clone(), parts.into_parts())
    }

    /// Several names if all can be had at once, else `None`.
    pub fn try_multi(&self, parts: impl Parts) -> TryMulti {
        self.multi(parts).at_once()
    }

    /// What is not as it should be with the server, each with its remedy; empty when all is well. Such as a memory policy that may evict
    /// locks, or a right that is missing without which it works, but slowly. As found when the link was last made; also logged then.
    ///
    /// ```
    /// let relatch = relatch::Relatch::embedded();
    /// assert!(relatch.remarks().is_empty());
    /// ```
    pub fn remarks(&self) -> Vec<String> {
        self.client.backend.remarks()
    }

    /// Who holds a name and who waits for it: at most 1,000 owners and 1,000 requests in line; the counts are whole, and
    /// [`holders_cut`](Inspection::holders_cut) and [`waiters_cut`](Inspection::waiters_cut) tell whether there are more.
    ///
    /// # Errors
    ///
    /// [`is_unreachable`](Error::is_unreachable) when the server does not answer within [`Config::patience`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it changes nothing.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let relatch = relatch::Relatch::embedded();
    /// let _held = relatch.rwlock("catalog")?.write().label("import").await?;
    /// let seen = relatch.inspect("catalog").await?;
    /// assert_eq!(seen.holder_count, 1);
    /// assert_eq!(seen.holders[0].label.as_deref(), Some("import"));
    /// # Ok::<(), relatch::Error>(()) }).unwrap();
    /// ```
    pub async fn inspect(&self, name: &str) -> Result<Inspection, Error> {
        let name = Name::new(name)?;
        let answer = ask(&self.client, &name, Operation::Inspect(INSPECT_ROWS)).await?;
        let Reply::Inspect(snapshot) = answer.reply else {
            return Err(unexpected());
        };
        let core: &Core = &self.client;
        let ids: Vec<_> = snapshot.waiting.iter().map(|row| row.request.client).collect();
        let holding: Vec<_> = snapshot.holding.iter().map(|row| row.request.client).collect();
        let (mut waiters, connected, mut holders, holders_connected) = tokio::join!(
            waiters(core, &snapshot.waiting),
            core.listening(&ids),
            holders(core, &snapshot),
            core.listening(&holding),
        );
        for (holder, connected) in holders.iter_mut().zip(holders_connected) {
            holder.connected = connected;
        }
        for (waiter, connected) in waiters.iter_mut().zip(connected) {
            waiter.connected = connected;
        }
        Ok(Inspection {
            name: name.as_str().into(),
            fence: (snapshot.fence > 0).then_some(snapshot.fence),
            holder_count: snapshot.holders,
            waiter_count: snapshot.waiters,
            holders,
            waiters,
        })
    }

    /// The names of which the server keeps anything and which match a pattern: those that are held or waited for, and those that were within the last
    /// hour, as their fences are kept. By a cursor, so that no server is held up, however many there are.
    ///
    /// In a pattern `*` is anything, `?` one character, `[a-f]` one of these, `[^a-f]` one of no such, and `\\` takes what
    /// follows it literally.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let relatch = relatch::Relatch::embedded();
    /// let _held = relatch.rwlock("jobs/nightly")?.write().await?;
    /// let mut names = relatch.names("jobs/*");
    /// while let Some(page) = names.next_page().await? {
    ///     assert_eq!(page, ["jobs/nightly"]);
    /// }
    /// # Ok::<(), relatch::Error>(()) }).unwrap();
    /// ```
    pub fn names(&self, pattern: &str) -> Names {
        Names::new(self.client.clone(), pattern)
    }

    /// Which names change from now on, as they do. Costs the server one short message per client and change, and its scripts nothing.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// use relatch::{Changed, Relatch};
    ///
    /// let relatch = Relatch::embedded();
    /// let mut changes = relatch.changes();
    /// assert_eq!(changes.next().await?, Changed::Anything); // look at all of them once
    /// let _held = relatch.rwlock("catalog")?.write().await?;
    /// assert_eq!(changes.next().await?, Changed::Names(vec!["catalog".into()]));
    /// # Ok::<(), relatch::Error>(()) }).unwrap();
    /// ```
    pub fn changes(&self) -> Changes {
        Changes::new(self.client.clone())
    }

    /// Owners that wait for each other in a circle, over all names and clients. Each circle was there when it was looked at; it may have
    /// dissolved since, as a wait in it ran out.
    ///
    /// Goes through all keys of the server by a cursor, and looks at every name that somebody waits for (at 1,000 holds and requests of each; [`Deadlocks::cut`]
    /// tells of which there are more): an operator's question, not one for a hot path.
    ///
    /// An owner is taken for one course of work, which keeps what it holds while it waits. Circles that include an owner which is used by several at
    /// once, as in a `join!`, may yet dissolve by themselves. [`Builder::refuse_deadlocks`] breaks circles as they are closed.
    ///
    /// # Errors
    ///
    /// As [`Names::next_page`]. When only a part of a cluster does not answer, or the server says no to a name (a key of it is another program's, or this user may not
    /// read it), the circles that the others show are told; it is an error if they show none.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it changes nothing.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let relatch = relatch::Relatch::embedded();
    /// for circle in relatch.deadlocks().await? {
    ///     println!("deadlock: {circle}");
    /// }
    /// # Ok::<(), relatch::Error>(()) }).unwrap();
    /// ```
    pub async fn deadlocks(&self) -> Result<Deadlocks, Error> {
        deadlock::deadlocks(&self.client).await
    }

    /// What the server says of itself. For `relatch doctor`.
    #[cfg(feature = "redis")]
    #[doc(hidden)]
    pub async fn examine(&self) -> Result<crate::backend::Examination, Error> {
        crate::looking::patiently(&self.client, |look| look.examine()).await
    }

    /// The server that has a name, past the lock. For `relatch bench`.
    #[cfg(feature = "cli")]
    #[doc(hidden)]
    pub async fn bare(&self, name: &str) -> Result<crate::Bare, Error> {
        let name = &Name::new(name)?;
        let lease_ms = crate::protocol::millis(self.client.config.lease);
        crate::looking::patiently(&self.client, |look| look.bare(name, lease_ms)).await
    }

    /// Takes a name away from everybody who holds it, and returns when those who held at the call no longer do; the next in
    /// line may hold by then. Who waits stays in line, and keeps what it gets.
    ///
    /// Each holder is told first ([`lost`](crate::WriteGuard::lost) resolves with [`Revoked`](crate::LostCause::Revoked)), and its
    /// client gives back at once. Where a client does not answer, its hold ends when its lease has run out: a guard
    /// never says that it is held when somebody else may hold.
    ///
    /// Returns how many granted requests were taken.
    ///
    /// # Errors
    ///
    /// [`is_unreachable`](Error::is_unreachable) when the server does not answer within [`Config::patience`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave it revoked; only the waiting ends.
    pub async fn revoke(&self, name: &str) -> Result<u64, Error> {
        self.revoke_from(name, None).await
    }

    /// As [`revoke`](Self::revoke), from one owner only.
    ///
    /// # Errors
    ///
    /// As [`revoke`](Self::revoke).
    ///
    /// # Cancel safety
    ///
    /// As [`revoke`](Self::revoke).
    pub async fn revoke_owner(&self, name: &str, owner: &Owner) -> Result<u64, Error> {
        self.revoke_from(name, Some(owner)).await
    }

    async fn revoke_from(&self, name: &str, owner: Option<&Owner>) -> Result<u64, Error> {
        let name = Name::new(name)?;
        let core: &Core = &self.client;
        // The server's time now: who enters later is left alone, however often the call is sent.
        let now_us = ask(core, &name, Operation::Inspect(0)).await?.now_us;
        let mut granted_by_ms = now_us.ok_or_else(unexpected)? / 1000;
        let mut taken = None;
        let mut rest = Duration::from_millis(1);
        loop {
            let call = Operation::Revoke(Revoke {
                owner: owner.map(Owner::id),
                granted_by_ms,
            });
            let Reply::Revoke(Revoking { requests, .. }) = ask(core, &name, call).await?.reply else {
                return Err(unexpected());
            };
            let taken = *taken.get_or_insert(requests);
            if requests == 0 {
                return Ok(taken);
            }
            // From now on only to see what is left.
            granted_by_ms = 0;
            // Its clients have been told; it takes them a moment. A dead one's lease takes longer.
            core.clock.sleep_until(core.clock.now().plus(rest)).await;
            rest = (rest * 2).min(Duration::from_millis(100));
        }
    }

    /// Ends the client: gives back everything that it holds ([`lost`](crate::WriteGuard::lost) resolves with
    /// [`Closed`](crate::LostCause::Closed)), leaves every line, and returns when the server has confirmed that. Whatever is
    /// acquired afterwards fails with [`is_closed`](Error::is_closed).
    ///
    /// # Errors
    ///
    /// [`is_unreachable`](Error::is_unreachable): the server did not confirm within [`Config::patience`]; leases end what is left.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only ends the waiting.
    pub async fn close(&self) -> Result<(), Error> {
        let core: &Core = &self.client;
        core.end();
        tokio::select! {
            biased;
            () = core.ended() => Ok(()),
            () = core.clock.sleep_until(core.clock.now().plus(core.config.patience)) => {
                // Then only the farewell is still under way, which is a courtesy.
                if core.reaper.is_settled() {
                    return Ok(());
                }
                Err(ErrorKind::Unreachable(
                    "the server did not confirm that everything was given back; the leases will end what is left"
                        .into(),
                )
                .into())
            }
        }
    }
}

/// One call that can be repeated, for as long as patience lasts.
pub(crate) async fn ask(core: &Core, name: &Name, operation: Operation) -> Result<Answer, Error> {
    let call = Call {
        name: name.clone(),
        operation,
    };
    let patience = core.clock.now().plus(core.config.patience);
    let mut last = None;
    loop {
        let outcome = tokio::select! {
            biased;
            outcome = core.backend.call(&call) => outcome,
            () = core.clock.sleep_until(patience) => return Err(core.unanswered(name, last)),
        };
        match outcome {
            Ok(heard) => {
                core.hear(&heard);
                return Ok(heard.answer);
            }
            Err(Failure::No(error)) => return Err(error),
            Err(Failure::Unknown(error)) => {
                last = Some(error);
                core.pause().await;
            }
        }
    }
}

/// How many rows of each kind an inspection shows.
const INSPECT_ROWS: usize = 1000;

fn invalid(what: &str) -> Error {
    ErrorKind::Invalid(what.into()).into()
}

pub(crate) fn unexpected() -> Error {
    ErrorKind::Server("the server answered something else than was asked".into()).into()
}

/// What a name looks like from outside. See [`Relatch::inspect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The name.
    pub name: String,
    /// The last fence issued, if one is known.
    pub fence: Option<u64>,
    /// How many owners hold.
    pub holder_count: u64,
    /// How many requests wait.
    pub waiter_count: u64,
    /// Every granted request of those who hold: an owner has as many as its depth.
    pub holders: Vec<Holder>,
    /// Who waits, the next to write first, then the upgradable, then the readers, each in the order they asked.
    pub waiters: Vec<Waiting>,
}

impl Inspection {
    /// Whether there are more who hold than `holders` has.
    pub fn holders_cut(&self) -> bool {
        let owners: HashSet<&Owner> = self.holders.iter().map(|held| &held.owner).collect();
        self.holder_count > owners.len() as u64
    }

    /// Whether there are more who wait than `waiters` has.
    pub fn waiters_cut(&self) -> bool {
        self.waiter_count > self.waiters.len() as u64
    }
}

/// A request in line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Waiting {
    /// Who waits.
    pub owner: Owner,
    /// The acquisition, by the id that it has on the server.
    pub request: String,
    /// For which mode.
    pub mode: Mode,
    /// For how long.
    #[serde(with = "humantime_serde")]
    pub waited: Duration,
    /// The label it asked with.
    pub label: Option<String>,
    /// The process that asked; `None` when it is no longer known.
    pub client: Option<ClientInfo>,
    /// Whether that process is connected to the server at the moment. `None` where that can't be known, or was not asked: only
    /// [`Relatch::inspect`] does.
    pub connected: Option<bool>,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by owner {} for {:?}", self.mode, self.owner, self.waited)?;
        if let Some(client) = &self.client {
            write!(f, ", {client}")?;
        }
        if let Some(label) = &self.label {
            write!(f, ", {label:?}")?;
        }
        Ok(())
    }
}

/// Makes a [`Relatch`]. From [`Relatch::builder`], or from a [`Config`] read with serde.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use relatch::{Builder, Config};
///
/// let config: Config = serde_json::from_str(r#"{ "url": "embedded", "lease": "10s" }"#).unwrap();
/// let relatch = Builder::from(config).connect().await?;
/// # relatch.close().await?;
/// # Ok::<(), relatch::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder makes nothing until it is told to"]
pub struct Builder {
    config: Config,
    clock: Option<Clock>,
    own_thread: bool,
}

impl From<Config> for Builder {
    fn from(config: Config) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }
}

macro_rules! set {
    ($($(#[$doc:meta])* $field:ident)*) => {
        $($(#[$doc])*
        pub fn $field(mut self, $field: Duration) -> Self {
            self.config.$field = $field;
            self
        })*
    };
}

impl Builder {
    /// Where the server is, or `embedded`. See [`Config::url`].
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.config.url = Some(url.into());
        self
    }

    /// What the address does not say of TLS. See [`Config::tls`].
    ///
    /// ```no_run
    /// # async fn f() -> Result<(), relatch::Error> {
    /// let mut tls = relatch::Tls::default();
    /// tls.ca = Some("/etc/redis/ca.pem".into());
    /// let relatch = relatch::Relatch::builder().url("rediss://cache.example").tls(tls).connect().await?;
    /// # Ok(()) }
    /// ```
    pub fn tls(mut self, tls: Tls) -> Self {
        self.config.tls = tls;
        self
    }

    set! {
        /// See [`Config::lease`].
        lease
        /// See [`Config::claim`].
        claim
        /// See [`Config::patience`].
        patience
        /// See [`Config::connect_timeout`].
        connect_timeout
        /// See [`Config::response_timeout`].
        response_timeout
        /// See [`Config::idle_ping`].
        idle_ping
        /// See [`Config::fence_retention`].
        fence_retention
    }

    /// For a server, or a proxy in between, that has no pub/sub: the client does not subscribe, and who waits asks with this back-off. Its place is on the server, and
    /// nobody passes it; but it learns later that it holds, and of a revocation only with its next renewal. Never needed otherwise.
    pub fn spin(mut self, backoff: Backoff) -> Self {
        self.config.spin = Some(backoff);
        self
    }

    /// Every guard is handed out when so many replicas have acknowledged its hold, which they have `within` to do. See
    /// [`Acquire::replicas`](crate::Acquire::replicas).
    pub fn replicas(mut self, number: u32, within: Duration) -> Self {
        self.config.replicas = number;
        self.config.replicas_within = within;
        self
    }

    /// Whether an acquisition that would close a circle of owners that wait for each other fails instead. See
    /// [`Config::refuse_deadlocks`].
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// use relatch::{Owner, Relatch};
    ///
    /// let relatch = Relatch::builder().refuse_deadlocks(true).embedded()?;
    /// let (from, to) = (relatch.rwlock("account 1")?, relatch.rwlock("account 2")?);
    /// let transfer = |one: relatch::RwLock, other: relatch::RwLock, both_have_one: std::sync::Arc<tokio::sync::Barrier>| {
    ///     Owner::new().scope(async move {
    ///         let _first = one.write().await?;
    ///         both_have_one.wait().await;
    ///         other.write().await.map(drop)
    ///     })
    /// };
    /// let both_have_one = std::sync::Arc::new(tokio::sync::Barrier::new(2));
    /// let (there, back) = tokio::join!(
    ///     transfer(from.clone(), to.clone(), both_have_one.clone()),
    ///     transfer(to, from, both_have_one),
    /// );
    /// // One of the two gave up, and let the other through: now it may try again.
    /// let refused = there.and(back).unwrap_err();
    /// assert!(refused.is_deadlock());
    /// assert_eq!(refused.circle().unwrap().waits.len(), 2);
    /// # Ok::<(), relatch::Error>(()) }).unwrap();
    /// ```
    pub fn refuse_deadlocks(mut self, refuse: bool) -> Self {
        self.config.refuse_deadlocks = refuse;
        self
    }

    /// The clock of an embedded client: one that a test moves. A Redis server has a clock of its own.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// The client's task gets a thread of its own, instead of running on the runtime that the client is made on. Each call then takes two
    /// switches between threads more. What [blocks](crate::blocking) needs it. Embedded clients have one anyway.
    pub fn own_thread(mut self) -> Self {
        self.own_thread = true;
        self
    }

    /// A client with a server of its own inside this process.
    ///
    /// # Errors
    ///
    /// [`is_invalid`](Error::is_invalid) for a setting that can't be used, [`is_unreachable`](Error::is_unreachable) when no thread can be started.
    pub fn embedded(self) -> Result<Relatch, Error> {
        let server = Embedded::with_clock(self.clock.clone().unwrap_or_default());
        self.join(&server)
    }

    /// A client of an embedded server that others use as well.
    ///
    /// # Errors
    ///
    /// As [`embedded`](Self::embedded).
    pub fn embedded_in(self, server: &Embedded) -> Result<Relatch, Error> {
        if self.clock.is_some() {
            return Err(invalid(
                "a clock was given, but the server has its own: give it to `Embedded::with_clock`",
            ));
        }
        self.join(server)
    }

    fn join(self, server: &Embedded) -> Result<Relatch, Error> {
        self.config.check()?;
        let id = self.config.client();
        let core = Arc::new_cyclic(|core: &Weak<Core>| {
            let core = core.clone();
            let backend = server.join(id, self.config.tuning(), sink(move || core.upgrade()));
            Core::new(id, self.config, server.clock().of_a_client(), Arc::new(backend))
        });
        Ok(Relatch {
            client: core.start(Home::Thread)?,
        })
    }

    /// Connects to the server that [`url`](Self::url) names; `embedded` names one inside this process.
    ///
    /// # Errors
    ///
    /// As [`Relatch::connect`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves no connection behind.
    pub async fn connect(self) -> Result<Relatch, Error> {
        match self.server()? {
            None => self.embedded(),
            Some(url) => self.connect_to(url).await,
        }
    }

    /// As [`connect`](Self::connect), for a thread: blocks until the client is connected, and gives it a [thread of its own](Self::own_thread). Needs
    /// no runtime.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub fn connect_blocking(self) -> Result<Relatch, Error> {
        match self.server()? {
            None => self.embedded(),
            Some(url) => self.connect_here(url),
        }
    }

    /// The server's address; `None` for one inside this process.
    fn server(&self) -> Result<Option<String>, Error> {
        match &self.config.url {
            None => Err(invalid(
                "no server is named: set `url`; `embedded` is one inside this process, which excludes nobody outside it",
            )),
            Some(url) if url == "embedded" => Ok(None),
            Some(_) if self.clock.is_some() => Err(invalid(
                "a clock was given, but a server has its own: leave it out, or call `embedded()`",
            )),
            Some(url) => Ok(Some(url.clone())),
        }
    }

    #[cfg(not(feature = "redis"))]
    async fn connect_to(self, url: String) -> Result<Relatch, Error> {
        self.connect_here(url)
    }

    #[cfg(not(feature = "redis"))]
    fn connect_here(self, _url: String) -> Result<Relatch, Error> {
        Err(invalid(
            "this program was built without relatch's feature `redis`: turn it on, or use `embedded`",
        ))
    }

    #[cfg(feature = "redis")]
    async fn connect_to(self, url: String) -> Result<Relatch, Error> {
        self.config.check()?;
        let within = self.config.connect_timeout;
        let home = match tokio::runtime::Handle::try_current() {
            _ if self.own_thread => Home::Thread,
            Ok(runtime) => Home::Runtime(runtime),
            Err(_) => {
                return Err(invalid(
                    "connecting needs a Tokio runtime around it, with its time and I/O drivers on (`enable_all`), or `own_thread`",
                ));
            }
        };
        let (client, backend) = self.link(url, home)?;
        backend.ready(within).await?;
        Ok(Relatch { client })
    }

    #[cfg(feature = "redis")]
    fn connect_here(self, url: String) -> Result<Relatch, Error> {
        self.config.check()?;
        let within = self.config.connect_timeout;
        let (client, backend) = self.link(url, Home::Thread)?;
        crate::blocking::wait(&client, backend.ready(within))??;
        Ok(Relatch { client })
    }

    #[cfg(feature = "redis")]
    fn link(
        self,
        url: String,
        home: Home,
    ) -> Result<(Arc<Handle>, Arc<crate::backend::redis::RedisBackend>), Error> {
        use crate::backend::redis::{RedisBackend, RedisOptions};

        let options = RedisOptions::of(url, &self.config);
        let clock = Clock::system().of_a_client();
        self.assemble(clock.clone(), home, |id, tuning, sink| {
            RedisBackend::new(options, id, tuning, clock, sink)
        })
    }

    /// A client on a clock, at a home and over a network of a simulation.
    #[cfg(feature = "cli")]
    pub(crate) fn simulated(
        self,
        clock: Clock,
        home: Home,
        network: Arc<dyn crate::backend::redis::simulated::Network>,
    ) -> Result<Arc<Handle>, Error> {
        use crate::backend::redis::{RedisBackend, RedisOptions};

        self.config.check()?;
        let options = RedisOptions::of("redis://simulated".into(), &self.config);
        let (client, _) = self.assemble(clock.clone(), home, |id, tuning, sink| {
            RedisBackend::simulated(network, options, id, tuning, clock, sink)
        })?;
        Ok(client)
    }

    #[cfg(feature = "redis")]
    fn assemble<B: crate::backend::Backend>(
        self,
        clock: Clock,
        home: Home,
        backend: impl FnOnce(crate::protocol::ClientId, Tuning, Sink) -> Result<Arc<B>, Error>,
    ) -> Result<(Arc<Handle>, Arc<B>), Error> {
        let id = self.config.client();
        // The sink needs the client, and the client the backend, which may refuse its address.
        let late: Arc<std::sync::OnceLock<Weak<Core>>> = Arc::default();
        let to = late.clone();
        let sink = sink(move || to.get().and_then(Weak::upgrade));
        let backend = backend(id, self.config.tuning(), sink)?;
        let core = Arc::new(Core::new(id, self.config, clock, backend.clone()));
        // Nobody else sets it.
        let _ = late.set(Arc::downgrade(&core));
        Ok((core.start(home)?, backend))
    }
}

/// Where a backend's pushes go, while the client lives.
fn sink(core: impl Fn() -> Option<Arc<Core>> + Send + Sync + 'static) -> Sink {
    Box::new(move |push: Push, told: Option<Told>| {
        if let Some(core) = core() {
            core.push(push, told);
        }
    })
}
