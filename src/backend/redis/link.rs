//! The link: one connection for commands, one for pushes, and the supervisor that keeps both up.
//!
//! The engine is the crate's `MultiplexedConnection`; its own ways to reconnect are not used, as they give up, and say
//! nothing when pushes were missed. What this file keeps:
//!
//! - **A link is whole or it is not there.** Both connections are made, checked and subscribed before the link is published;
//!   when either fails both go, as pushes may have been missed, and the next link has the next generation.
//! - **Everything lives in [`Linker::run`].** The tasks that drive the connections belong to `JoinSet`s that it owns: dropping it
//!   closes both connections, and ends every call that waits on them. Whatever a server sends that the crate's parser can't
//!   bear ends a task, not the supervisor.
//! - **It never gives up.** The first attempt after a loss is made at once, the further ones after a growing, capped,
//!   random pause. A link that breaks as soon as it is up, before any call was answered, counts as a failed attempt.
//!
//! It refuses to know what a call means: that is for `super` and `scripts`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use ::redis::{AsyncConnectionConfig, Cmd, PushInfo, PushKind, RedisError, ServerErrorKind, Value};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::backend::Sink;
use crate::backend::redis::options::{Address, RedisOptions, Target};
use crate::backend::redis::refusal::{classify, printable};
use crate::backend::redis::scripts;
use crate::clock::Clock;
use crate::entropy;
use crate::error::{Error, ErrorKind};
use crate::looking::ChangeSet;
use crate::protocol::ClientId;

/// The longest pause between two attempts, and how long a link that answered nothing must have been up to count as a success.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// What the pause can be at most after the first failed attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// How many commands may wait to be written before the next has to wait for its turn to.
const BUFFERED: usize = 1024;
/// The oldest server whose scripts and pushes are what we build on.
const OLDEST: (u64, u64) = (6, 2);

/// Where the link is in its life.
pub(super) enum State {
    /// There is none; with why, once anything was tried.
    Down(Option<Error>),
    Up(Arc<Live>),
    Closed,
}

/// A link that is up.
pub(super) struct Live {
    /// For commands. Clone it: it is a handle.
    pub(super) connection: MultiplexedConnection,
    /// The number of clients that `PUBLISH` says heard a message is all of them.
    pub(super) trust: bool,
    /// It has carried an answer that made sense.
    proved: AtomicBool,
    faults: mpsc::Sender<Error>,
}

impl Live {
    /// A call got its answer.
    pub(super) fn prove(&self) {
        // Looked at first, as every call comes by here and the value changes once.
        if !self.proved.load(Ordering::Relaxed) {
            self.proved.store(true, Ordering::Relaxed);
        }
    }
}

/// Makes links, one after the other.
pub(super) struct Linker {
    pub(super) options: RedisOptions,
    pub(super) target: Target,
    pub(super) clock: Clock,
    pub(super) client: ClientId,
    sink: Sink,
    state: Mutex<State>,
    /// The state has changed. Wakes in the order in which was waited.
    changed: Notify,
    generation: watch::Sender<u64>,
    /// Who wants to hear which names change, once a link was told to say so.
    observers: Mutex<Vec<Weak<ChangeSet>>>,
    /// Whoever runs the supervisor. A second one waits for the first to be dropped.
    turn: tokio::sync::Mutex<()>,
}

impl Linker {
    pub(super) fn new(
        options: RedisOptions,
        target: Target,
        client: ClientId,
        clock: Clock,
        sink: Sink,
    ) -> Self {
        Self {
            options,
            target,
            clock,
            client,
            sink,
            state: Mutex::new(State::Down(None)),
            changed: Notify::new(),
            generation: watch::channel(0).0,
            observers: Mutex::default(),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    pub(super) fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    pub(super) fn trouble(&self) -> Option<Error> {
        match &*self.state.lock() {
            State::Down(why) => why.clone(),
            State::Up(_) => None,
            State::Closed => Some(ErrorKind::Closed.into()),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(&*self.state.lock(), State::Closed)
    }

    /// The link; waits for one if there is none. `None` once it is closed.
    pub(super) async fn live(&self) -> Option<Arc<Live>> {
        self.when(|state| match state {
            State::Up(live) => Some(Some(live.clone())),
            State::Closed => Some(None),
            State::Down(_) => None,
        })
        .await
    }

    /// Waits until `look` finds what it looks for in the state. Cancel safe.
    async fn when<T>(&self, look: impl Fn(&State) -> Option<T>) -> T {
        // Nearly always it is there already.
        if let Some(found) = look(&self.state.lock()) {
            return found;
        }
        loop {
            // Enrol first, look afterwards: a change in between is not missed.
            let changed = self.changed.notified();
            if let Some(found) = look(&self.state.lock()) {
                return found;
            }
            changed.await;
        }
    }

    /// `change` tells whether it did; then all who wait look again.
    fn change(&self, change: impl FnOnce(&mut State) -> bool) -> bool {
        let changed = change(&mut self.state.lock());
        if changed {
            self.changed.notify_waiters();
        }
        changed
    }

    /// Resolves on the first link, or with the first thing that went wrong.
    pub(super) async fn ready(&self, within: Duration) -> Result<(), Error> {
        let known = self.when(|state| match state {
            State::Down(None) => None,
            State::Down(Some(error)) => Some(Err(error.clone())),
            State::Closed => Some(Err(ErrorKind::Closed.into())),
            State::Up(_) => Some(Ok(())),
        });
        // An attempt that may take as long as this has more to tell than that time is up.
        match timeout(within + Duration::from_millis(250), known).await {
            Ok(known) => known,
            Err(_) => Err(self.unreachable(format_args!("gave no answer within {within:?}"))),
        }
    }

    /// `what` happened at the server's place.
    pub(super) fn unreachable(&self, what: impl std::fmt::Display) -> Error {
        ErrorKind::Unreachable(format!("{} {what}", self.target.place)).into()
    }

    fn strange(&self, what: impl std::fmt::Display) -> Error {
        ErrorKind::Server(format!(
            "{} does not speak like Redis: {what}; is it another kind of server, or does it want TLS?",
            self.target.place
        ))
        .into()
    }

    /// The supervisor. Ends when the link is closed for good.
    pub(super) async fn run(self: &Arc<Self>) {
        let _turn = self.turn.lock().await;
        let _down = DownOnDrop(self);
        // What was wrong with an earlier runtime is of no concern to this one.
        self.take_down(None);
        let closed = self.when(|state| matches!(state, State::Closed).then_some(()));
        tokio::select! {
            biased;
            never = self.keep_linked() => match never {},
            () = closed => {}
        }
    }

    /// Once it is closed, and the supervisor has ended or does not within `patience`.
    pub(super) async fn close(&self, patience: Duration) {
        self.change(|state| {
            *state = State::Closed;
            true
        });
        let _ = timeout(patience, self.turn.lock()).await;
    }

    async fn keep_linked(self: &Arc<Self>) -> std::convert::Infallible {
        let mut failures = 0;
        loop {
            if failures > 0 {
                sleep(pause(failures)).await;
            }
            let link = match self.attempt().await {
                Ok(link) => link,
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(server = %self.target.place, %error, "no link");
                    } else {
                        tracing::debug!(server = %self.target.place, %error, failures, "still no link");
                    }
                    self.take_down(Some(error));
                    failures = failures.saturating_add(1);
                    continue;
                }
            };
            let up = self.clock.now();
            let live = link.live.clone();
            self.put_up(&live);
            let error = self.watch_over(link).await;
            if live.proved.load(Ordering::Relaxed) || self.clock.now().since(up) >= LONGEST_PAUSE {
                failures = 0;
            } else {
                failures = failures.saturating_add(1);
            }
            tracing::warn!(server = %self.target.place, %error, "link lost");
        }
    }

    fn put_up(&self, live: &Arc<Live>) {
        let up = self.change(|state| {
            let open = !matches!(state, State::Closed);
            if open {
                *state = State::Up(live.clone());
            }
            open
        });
        if up {
            // After the link itself, so that whoever polls because of it finds one.
            self.generation.send_modify(|n| *n += 1);
            tracing::info!(server = %self.target.place, generation = *self.generation.borrow(), "linked");
        }
    }

    fn take_down(&self, why: Option<Error>) {
        self.change(|state| {
            let open = !matches!(state, State::Closed);
            if open {
                *state = State::Down(why);
            }
            open
        });
    }

    /// Until the link is of no use any more; says why. Both connections are closed then.
    async fn watch_over(&self, link: Link) -> Error {
        let Link {
            live,
            subscriber,
            mut drivers,
            mut faults,
        } = link;
        let pulse = async {
            loop {
                sleep(self.options.idle_ping).await;
                let both = tokio::try_join!(self.ping(&live.connection), async {
                    match &subscriber {
                        Some(subscriber) => self.ping(subscriber).await,
                        None => Ok(()),
                    }
                });
                if let Err(error) = both {
                    return error;
                }
            }
        };
        let error = tokio::select! {
            biased;
            Some(error) = faults.recv() => error,
            _ = drivers.join_next() => self.unreachable("closed the connection"),
            error = pulse => error,
        };
        // First nobody finds it any more, then it ends: a call that fails with it waits for the next one.
        self.take_down(Some(error.clone()));
        drivers.shutdown().await;
        error
    }

    /// Whatever it answers, it is there.
    async fn ping(&self, connection: &MultiplexedConnection) -> Result<(), Error> {
        let mut connection = connection.clone();
        match connection.send_packed_command(&::redis::cmd("PING")).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.broken(&error)),
        }
    }

    /// This link is of no use any more. Does nothing to the links after it.
    pub(super) fn fault(&self, live: &Arc<Live>, error: &Error) {
        // From now on nobody finds it, before the supervisor has even heard of it: callers that repeat at once would find it
        // again and again, and on a small runtime leave the supervisor no turn to take it down.
        self.change(|state| {
            let current = matches!(state, State::Up(up) if Arc::ptr_eq(up, live));
            if current {
                *state = State::Down(Some(error.clone()));
            }
            current
        });
        // One is enough.
        let _ = live.faults.try_send(error.clone());
    }

    /// What a failure of a connection that had worked means.
    pub(super) fn broken(&self, error: &RedisError) -> Error {
        if error.is_timeout() {
            self.unreachable(format_args!(
                "did not answer within {:?}",
                self.options.response_timeout
            ))
        } else if error.kind() == ::redis::ErrorKind::Parse {
            self.unreachable(format_args!(
                "sent something unreadable ({})",
                printable(&error.to_string())
            ))
        } else if error.is_connection_dropped() {
            self.unreachable("closed the connection")
        } else {
            self.unreachable(format_args!(
                "can't be reached ({})",
                printable(&error.to_string())
            ))
        }
    }

    /// One attempt, in a task of its own, so that it can be ended, and so that it can end badly.
    async fn attempt(self: &Arc<Self>) -> Result<Link, Error> {
        let accepted = Arc::new(AtomicBool::new(false));
        let mut task = JoinSet::new();
        task.spawn({
            let linker = self.clone();
            let accepted = accepted.clone();
            async move { linker.link(&accepted).await }
        });
        let within = self.options.connect_timeout;
        match timeout(within, task.join_next()).await {
            Ok(Some(Ok(link))) => link,
            Ok(Some(Err(_)) | None) => Err(self.strange("it sent something unreadable")),
            Err(_) if accepted.load(Ordering::Relaxed) => Err(self.unreachable(format_args!(
                "took the connection but did not answer within {within:?}; is it a Redis server, and is it stopped or overloaded?"
            ))),
            Err(_) => Err(self.unreachable(format_args!(
                "could not be connected to within {within:?}; is a server running there, and does a firewall let you through?"
            ))),
        }
    }

    async fn link(self: Arc<Self>, accepted: &AtomicBool) -> Result<Link, Error> {
        let mut drivers = JoinSet::new();
        // One place: whatever comes first takes the link down.
        let (report, faults) = mpsc::channel(1);

        let connection = self
            .connect(
                &mut drivers,
                accepted,
                |linker, push| linker.on_push(push, None),
                &report,
            )
            .await?;
        let mode = self.check(connection.clone()).await?;
        self.load_scripts(connection.clone()).await?;

        let subscriber = if self.options.pushes {
            Some(self.subscribe(&mut drivers, accepted, &report).await?)
        } else {
            None
        };

        Ok(Link {
            live: Arc::new(Live {
                connection,
                // A cluster's node counts its own subscribers only. Where the mode is unknown nothing is assumed.
                trust: mode == Mode::Standalone,
                proved: AtomicBool::new(false),
                faults: report,
            }),
            subscriber,
            drivers,
            faults,
        })
    }

    /// The connection that pushes come on.
    async fn subscribe(
        self: &Arc<Self>,
        drivers: &mut JoinSet<()>,
        accepted: &AtomicBool,
        report: &mpsc::Sender<Error>,
    ) -> Result<MultiplexedConnection, Error> {
        let confirmed = Arc::new(AtomicBool::new(false));
        let subscribed = confirmed.clone();
        let mut subscriber = self
            .connect(
                drivers,
                accepted,
                move |linker, push| linker.on_push(push, Some(&subscribed)),
                report,
            )
            .await?;
        let channel = scripts::channel(self.client);
        subscriber
            .subscribe(channel.as_str())
            .await
            .map_err(|error| self.handshake_failed(&error))?;
        if !confirmed.load(Ordering::Acquire) {
            return Err(self.strange("it did not confirm a subscription"));
        }
        Ok(subscriber)
    }

    /// One connection, logged in.
    async fn connect(
        self: &Arc<Self>,
        drivers: &mut JoinSet<()>,
        accepted: &AtomicBool,
        on_push: impl Fn(&Linker, PushInfo) + Send + Sync + 'static,
        report: &mpsc::Sender<Error>,
    ) -> Result<MultiplexedConnection, Error> {
        let config = AsyncConnectionConfig::new()
            // The whole attempt has a limit.
            .set_connection_timeout(None)
            .set_response_timeout(Some(self.options.response_timeout))
            .set_pipeline_buffer_size(BUFFERED)
            .set_push_sender({
                let linker = self.clone();
                let report = report.clone();
                move |push: PushInfo| {
                    if push.kind == PushKind::Disconnection {
                        let _ = report.try_send(linker.unreachable("closed the connection"));
                    } else {
                        on_push(&linker, push);
                    }
                    Ok::<(), ()>(())
                }
            });
        match &self.target.address {
            Address::Tcp(host, port) => {
                let stream = self.reach(host, *port).await?;
                accepted.store(true, Ordering::Relaxed);
                self.log_in(drivers, stream, config).await
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                let stream = tokio::net::UnixStream::connect(path)
                    .await
                    .map_err(|error| self.refused(&error))?;
                accepted.store(true, Ordering::Relaxed);
                self.log_in(drivers, stream, config).await
            }
            #[cfg(feature = "cli")]
            Address::Simulated(network) => {
                let stream = network.connect().await.map_err(|error| self.refused(&error))?;
                accepted.store(true, Ordering::Relaxed);
                self.log_in(drivers, stream, config).await
            }
        }
    }

    async fn reach(&self, host: &str, port: u16) -> Result<TcpStream, Error> {
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(|error| self.refused(&error))?;
        let tune = || -> std::io::Result<()> {
            stream.set_nodelay(true)?;
            let socket = SockRef::from(&stream);
            let keepalive = TcpKeepalive::new().with_time(self.options.idle_ping);
            #[cfg(any(
                target_os = "linux",
                target_os = "android",
                target_os = "macos",
                target_os = "windows"
            ))]
            let keepalive = keepalive.with_interval(self.options.idle_ping);
            socket.set_tcp_keepalive(&keepalive)?;
            #[cfg(any(target_os = "linux", target_os = "android"))]
            socket.set_tcp_user_timeout(Some(self.options.idle_ping + self.options.response_timeout))?;
            Ok(())
        };
        if let Err(error) = tune() {
            // It works without; only the PINGs then find a half-open link.
            tracing::debug!(server = %self.target.place, %error, "can't tune the socket");
        }
        Ok(stream)
    }

    fn refused(&self, error: &std::io::Error) -> Error {
        self.unreachable(format_args!(
            "can't be connected to ({error}); is a server running there? Start one, or correct the address"
        ))
    }

    async fn log_in<S>(
        &self,
        drivers: &mut JoinSet<()>,
        stream: S,
        config: AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (connection, driver) = MultiplexedConnection::new_with_config(&self.target.login, stream, config)
            .await
            .map_err(|error| self.handshake_failed(&error))?;
        drivers.spawn(driver);
        Ok(connection)
    }

    fn handshake_failed(&self, error: &RedisError) -> Error {
        use ::redis::ErrorKind as Kind;
        match error.kind() {
            Kind::Parse => return self.strange(printable(&error.to_string())),
            Kind::RESP3NotSupported => return self.too_old("a server that does not know HELLO"),
            Kind::Io if error.is_timeout() => {
                return self.unreachable(format_args!(
                    "took the connection but did not answer within {:?}; is it a Redis server, and is it stopped or overloaded?",
                    self.options.response_timeout
                ));
            }
            Kind::Io => {
                return self.unreachable(format_args!(
                    "closed the connection at once ({}); is it a Redis server, does it want TLS, and does it let you in?",
                    printable(&error.to_string())
                ));
            }
            _ => {}
        }
        // The crate hides what the server said to SELECT within an error of its own.
        if let Ok(server) = ::redis::ServerError::try_from(error.clone()) {
            if server.kind() == Some(ServerErrorKind::ResponseError)
                && server
                    .details()
                    .unwrap_or_default()
                    .starts_with("unknown command")
            {
                return self.too_old("a server, or a proxy, that does not know HELLO");
            }
            return classify(&self.target.place, "a connection", &server).into_error();
        }
        ErrorKind::Server(format!(
            "{} did not let us in: {}",
            self.target.place,
            printable(&error.to_string())
        ))
        .into()
    }

    fn too_old(&self, what: impl std::fmt::Display) -> Error {
        ErrorKind::Server(format!(
            "{} is {what}: too old; relatch needs Redis {}.{} or newer, or Valkey",
            self.target.place, OLDEST.0, OLDEST.1
        ))
        .into()
    }

    /// Whether the server is one that we can work with.
    async fn check(&self, mut connection: MultiplexedConnection) -> Result<Mode, Error> {
        let mut info = Cmd::new();
        info.arg("INFO").arg("server");
        let info = match connection.send_packed_command(&info).await {
            Ok(Value::ServerError(error)) => {
                if error.kind() == Some(ServerErrorKind::NoPerm) {
                    tracing::debug!(server = %self.target.place, %error, "the server's version is not checked");
                    return Ok(Mode::Unknown);
                }
                return Err(classify(&self.target.place, "INFO", &error).into_error());
            }
            Ok(Value::BulkString(info)) => String::from_utf8_lossy(&info).into_owned(),
            Ok(Value::VerbatimString { text, .. }) => text,
            Ok(_) => return Err(self.strange("it does not know INFO")),
            Err(error) => return Err(self.handshake_failed(&error)),
        };
        let server = ServerInfo::parse(&info).ok_or_else(|| self.strange("its INFO has no version"))?;
        if server.is_too_old() {
            return Err(self.too_old(format_args!("Redis {}", server.version)));
        }
        if server.mode == Mode::Sentinel {
            return Err(ErrorKind::Server(format!(
                "{} is a Sentinel, which keeps no data: name the server that it watches",
                self.target.place
            ))
            .into());
        }
        Ok(server.mode)
    }

    /// Loads every script, so that no call has to carry its source. A server that forbids it, or forgets them later, is sent the source
    /// with the call.
    async fn load_scripts(&self, mut connection: MultiplexedConnection) -> Result<(), Error> {
        // In one go: on a long way to the server each round trip counts.
        let mut loads = ::redis::Pipeline::with_capacity(scripts::ALL.len());
        for script in scripts::ALL {
            loads.cmd("SCRIPT").arg("LOAD").arg(script.source);
        }
        let loaded = connection
            .send_packed_commands(&loads, 0, scripts::ALL.len())
            .await
            .map_err(|error| self.handshake_failed(&error))?;
        if let Some(Value::ServerError(error)) = loaded.first() {
            tracing::debug!(server = %self.target.place, %error, "the scripts are not loaded ahead");
        }
        Ok(())
    }

    /// This set hears which names change, for as long as it lives.
    pub(super) fn observe(&self, set: &Arc<ChangeSet>) {
        let mut observers = self.observers.lock();
        observers.retain(|other| other.strong_count() > 0 && other.as_ptr() != Arc::as_ptr(set));
        observers.push(Arc::downgrade(set));
    }

    pub(super) fn anything_changed(&self) {
        self.each_observer(ChangeSet::anything);
    }

    fn each_observer(&self, tell: impl Fn(&ChangeSet)) {
        for set in self.observers.lock().iter().filter_map(Weak::upgrade) {
            tell(&set);
        }
    }

    fn on_push(&self, push: PushInfo, subscribed: Option<&AtomicBool>) {
        match (push.kind, subscribed) {
            (PushKind::Subscribe, Some(subscribed)) => subscribed.store(true, Ordering::Release),
            (PushKind::Message, Some(_)) => match push.data.get(1) {
                Some(Value::BulkString(payload)) => match scripts::decode_push(payload) {
                    Ok(push) => (self.sink)(push),
                    Err(malformed) => {
                        let malformed = printable(&malformed.to_string());
                        tracing::warn!(server = %self.target.place, malformed, "a push that can't be read");
                    }
                },
                _ => tracing::warn!(server = %self.target.place, "a push that can't be read"),
            },
            (PushKind::Invalidate, _) => match push.data.first() {
                Some(Value::Array(keys)) => {
                    for key in keys {
                        if let Value::BulkString(key) = key
                            && let Some((name, _)) = scripts::name_of(key)
                        {
                            self.each_observer(|set| set.name(name.clone()));
                        }
                    }
                }
                // All of them: the data was flushed.
                _ => self.anything_changed(),
            },
            (kind, _) => tracing::debug!(server = %self.target.place, %kind, "a push of no concern"),
        }
    }
}

/// A link that is whole, not published yet.
struct Link {
    live: Arc<Live>,
    /// None where there are no pushes.
    subscriber: Option<MultiplexedConnection>,
    drivers: JoinSet<()>,
    faults: mpsc::Receiver<Error>,
}

/// When the supervisor is dropped its link goes too: nobody shall find it any more.
struct DownOnDrop<'a>(&'a Linker);

impl Drop for DownOnDrop<'_> {
    fn drop(&mut self) {
        let why = self
            .0
            .unreachable("is not linked: the runtime that kept the link was shut down");
        self.0.take_down(Some(why));
    }
}

/// The most that is waited, doubled with each failure; then any part of that, so that clients which lost the same server
/// do not come back as one.
fn pause(failures: u32) -> Duration {
    let most = FIRST_PAUSE
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(LONGEST_PAUSE);
    jitter(most)
}

/// Between nothing and `most`.
pub(super) fn jitter(most: Duration) -> Duration {
    #[allow(clippy::cast_precision_loss)] // a random number stays one
    most.mul_f64((entropy::bits() >> 11) as f64 / (u64::MAX >> 11) as f64)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Standalone,
    Sentinel,
    /// A cluster, or something that does not say.
    Unknown,
}

/// What `INFO server` says that matters here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ServerInfo {
    pub(super) version: String,
    valkey: bool,
    mode: Mode,
}

impl ServerInfo {
    /// `None` when this is no INFO.
    pub(super) fn parse(info: &str) -> Option<Self> {
        let field = |name: &str| {
            info.lines()
                .filter_map(|line| line.trim().split_once(':'))
                .find_map(|(key, value)| (key == name).then_some(value))
        };
        let valkey = field("valkey_version");
        let version = printable(valkey.or(field("redis_version"))?);
        version.split('.').next()?.parse::<u64>().ok()?;
        Some(Self {
            version,
            valkey: valkey.is_some(),
            mode: match field("redis_mode").or(field("server_mode")) {
                Some("standalone") => Mode::Standalone,
                Some("sentinel") => Mode::Sentinel,
                _ => Mode::Unknown,
            },
        })
    }

    pub(super) fn is_too_old(&self) -> bool {
        let mut parts = self
            .version
            .split('.')
            .map(|part| part.parse::<u64>().unwrap_or(0));
        let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        // Valkey begins where Redis 7.2 was.
        !self.valkey && version < OLDEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_capped() {
        for failures in 1..100 {
            let most = Duration::from_millis(10 << (failures - 1).min(10)).min(LONGEST_PAUSE);
            assert!(pause(failures) <= most);
        }
        assert!((0..100).map(|_| pause(30)).max().unwrap() > LONGEST_PAUSE / 2);
        let _ = pause(u32::MAX);
    }

    #[test]
    fn versions_are_told_apart() {
        let old = |info: &str| ServerInfo::parse(info).map(|info| info.is_too_old());
        assert_eq!(
            old("# Server\r\nredis_version:6.0.16\r\nredis_mode:standalone\r\n"),
            Some(true)
        );
        assert_eq!(old("redis_version:5.0.14"), Some(true));
        assert_eq!(old("redis_version:6.2.0"), Some(false));
        assert_eq!(old("redis_version:7.0.15\r\n"), Some(false));
        assert_eq!(old("redis_version:10.0.0"), Some(false));
        assert_eq!(old("redis_version:255.255.255"), Some(false));
        assert_eq!(
            old("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\n"),
            Some(false)
        );
        assert_eq!(old("redis_version:7.2.4\r\nvalkey_version:1.0"), Some(false));
        assert_eq!(old("redis_version:new"), None);
        assert_eq!(old("<html>"), None);
        assert_eq!(old(""), None);
    }

    #[test]
    fn only_a_server_of_its_own_is_trusted_to_count_listeners() {
        let mode = |info: &str| ServerInfo::parse(info).unwrap().mode;
        assert_eq!(
            mode("redis_version:7.0.0\r\nredis_mode:standalone"),
            Mode::Standalone
        );
        assert_eq!(mode("redis_version:7.0.0\r\nredis_mode:cluster"), Mode::Unknown);
        assert_eq!(
            mode("valkey_version:9.0.0\r\nserver_mode:standalone"),
            Mode::Standalone
        );
        assert_eq!(mode("redis_version:7.0.0"), Mode::Unknown);
    }
}
