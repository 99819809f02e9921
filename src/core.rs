//! What all handles of one client share, and the one task that works for them.
//!
//! A [`Core`] lives as long as its task; a [`Handle`] is held by everything a user has (clients, locks, guards, futures), and
//! when the last is gone the task gives back what is left and ends. The task runs on the runtime that the client was
//! made on, and **moves to a thread of its own when that runtime shuts down**: guards outlive runtimes, and what a runtime drops while it
//! shuts down must still be given back.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::backend::{Backend, Heard, Told};
use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::error::{Error, ErrorKind, LostCause};
use crate::observe;
use crate::protocol::{ClientId, ClientInfo, EPOCH_US, Name, Push, RequestId, millis};
use crate::reaper::Reaper;
use crate::room::Room;
use crate::waiters::Waiters;
use crate::watchdog::{Watchdog, margin};

pub(crate) struct Core {
    pub(crate) id: ClientId,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) waiters: Waiters,
    pub(crate) watchdog: Watchdog,
    pub(crate) reaper: Reaper,
    requests: AtomicU64,
    server_time: Mutex<Option<ServerTime>>,
    ending: AtomicBool,
    ended: watch::Sender<bool>,
}

/// The server's time in microseconds, from the last answer.
#[derive(Clone, Copy)]
struct ServerTime {
    now_us: u64,
    /// When it was certainly not that late yet.
    sent: Moment,
    /// When it was certainly that late.
    heard: Moment,
}

/// Keeps a client going. The last one to be dropped ends it.
pub(crate) struct Handle {
    core: Arc<Core>,
}

impl Handle {
    /// Without keeping the client going.
    pub(crate) fn core(&self) -> Arc<Core> {
        self.core.clone()
    }
}

impl std::ops::Deref for Handle {
    type Target = Core;
    fn deref(&self) -> &Core {
        &self.core
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.end();
    }
}

/// Where a client's task runs.
pub(crate) enum Home {
    /// On the runtime that made it.
    Runtime(tokio::runtime::Handle),
    /// On a thread of its own: an embedded client needs no runtime to be made.
    Thread,
    /// Wherever a simulation runs it.
    #[cfg(feature = "cli")]
    Simulated(Box<dyn FnOnce(crate::backend::Later<'static, ()>) + Send>),
}

impl Core {
    pub(crate) fn new(id: ClientId, config: Config, clock: Clock, backend: Arc<dyn Backend>) -> Self {
        Self {
            id,
            config,
            clock,
            backend,
            waiters: Waiters::default(),
            watchdog: Watchdog::default(),
            reaper: Reaper::default(),
            requests: AtomicU64::new(0),
            server_time: Mutex::new(None),
            ending: AtomicBool::new(false),
            ended: watch::channel(false).0,
        }
    }

    /// Where a thread may wait for this client, if it has a thread of its own.
    pub(crate) fn room(&self) -> Option<Room> {
        self.clock.rooms().enter()
    }

    /// Starts the client's task.
    pub(crate) fn start(self: Arc<Self>, home: Home) -> Result<Arc<Handle>, Error> {
        observe::describe();
        match home {
            Home::Runtime(runtime) => {
                runtime.spawn(Task::new(self.clone()).run());
            }
            #[cfg(feature = "cli")]
            Home::Simulated(spawn) => spawn(Box::pin(Task::new(self.clone()).run())),
            Home::Thread => Task::on_a_thread(self.clone()).map_err(|error| {
                ErrorKind::Unreachable(format!("no thread could be started for the client: {error}"))
            })?,
        }
        Ok(Arc::new(Handle { core: self }))
    }

    /// Numbered by the server's time, as far as it is known, and not ahead of it: see `state`.
    pub(crate) fn next_request(&self) -> RequestId {
        let time = *self.server_time.lock();
        let now_us = time.map_or(0, |time| {
            time.now_us
                .saturating_add(micros(self.clock.now().since(time.heard)))
        });
        let made = now_us.saturating_sub(EPOCH_US);
        let last = self
            .requests
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(made.max(last + 1))
            })
            .unwrap_or_else(|last| last);
        RequestId {
            client: self.id,
            number: made.max(last + 1),
        }
    }

    // -- time ---------------------------------------------------------------------------------------------------

    /// An answer tells the server's time.
    pub(crate) fn hear(&self, heard: &Heard) {
        let Some(now_us) = heard.answer.now_us else { return };
        let mut time = self.server_time.lock();
        if time.is_none_or(|time| time.sent <= heard.sent) {
            *time = Some(ServerTime {
                now_us,
                sent: heard.sent,
                heard: self.clock.now(),
            });
        }
    }

    /// When a deadline of the server's has certainly not passed yet, on our clock.
    pub(crate) fn deadline(&self, heard: &Heard, deadline_ms: u64) -> Moment {
        match heard.answer.now_us {
            Some(now_us) => place(heard.sent, now_us, deadline_ms),
            None => heard.sent,
        }
    }

    /// The same for a deadline that came by a push: counted from the last answer of its server before it, or from when what was
    /// granted had certainly not been `asked` for yet, whichever says more.
    pub(crate) fn deadline_by_push(
        &self,
        asked: Moment,
        told: Option<Told>,
        now_us: u64,
        deadline_ms: u64,
    ) -> Moment {
        let by_request = place(asked, now_us, deadline_ms);
        match told {
            Some(told) => place(told.sent, told.now_us, deadline_ms).max(by_request),
            None => by_request,
        }
    }

    /// The server's time, roughly: for what people read.
    pub(crate) fn server_now_ms(&self) -> u64 {
        match *self.server_time.lock() {
            Some(time) => (time.now_us / 1000).saturating_add(millis(self.clock.now().since(time.heard))),
            None => 0,
        }
    }

    /// Who these clients are, as far as the server says so soon.
    pub(crate) async fn who(&self, ids: &[ClientId]) -> Vec<Option<ClientInfo>> {
        let soon = self.config.response_timeout.saturating_mul(2);
        tokio::select! {
            biased;
            clients = self.backend.clients(ids) => clients.unwrap_or_default(),
            () = self.clock.sleep_until(self.clock.now().plus(soon)) => Vec::new(),
        }
    }

    /// Whether these clients hear their pushes, as far as the server says so soon.
    pub(crate) async fn listening(&self, ids: &[ClientId]) -> Vec<Option<bool>> {
        let Some(look) = self.backend.look().filter(|_| !ids.is_empty()) else {
            return Vec::new();
        };
        let soon = self.config.response_timeout.saturating_mul(2);
        tokio::select! {
            biased;
            listening = look.listening(ids) => listening.unwrap_or_default(),
            () = self.clock.sleep_until(self.clock.now().plus(soon)) => Vec::new(),
        }
    }

    /// A short rest before something is tried again.
    pub(crate) async fn pause(&self) {
        self.clock
            .sleep_until(self.clock.now().plus(Duration::from_millis(10)))
            .await;
    }

    // -- pushes -------------------------------------------------------------------------------------------------

    pub(crate) fn push(&self, push: Push, told: Option<Told>) {
        match push {
            Push::Granted { now_us, grants } => {
                for (request, grant) in grants {
                    self.waiters.granted(self, request, grant, now_us, told);
                }
            }
            Push::Revoked { requests } => {
                for request in requests {
                    self.watchdog.lose(self, request, LostCause::Revoked);
                }
            }
        }
    }

    // -- the end ------------------------------------------------------------------------------------------------

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// No more acquisitions. What is held is lost and given back, what waits is withdrawn; then the task ends.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.waiters.fail_all(self, &ErrorKind::Closed.into());
        self.watchdog.lose_all(self, LostCause::Closed);
        // Only now is everything handed in.
        self.reaper.finish();
    }

    /// Resolves when the client's task has ended.
    pub(crate) async fn ended(&self) {
        let mut ended = self.ended.subscribe();
        // An error means that the sender is gone, and with it the task.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// The process ends, here and now: nothing is given back, no thread takes the task over.
    #[cfg(feature = "cli")]
    pub(crate) fn perish(&self) {
        self.ended.send_replace(true);
    }

    pub(crate) fn unreachable(&self, name: &Name) -> Error {
        self.unanswered(name, None)
    }

    /// A call was repeated for as long as it may be; `last` is what it came to before.
    pub(crate) fn unanswered(&self, name: &Name, last: Option<Error>) -> Error {
        let why = match self.backend.trouble_of(name).or(last) {
            Some(error) => error.to_string(),
            None => "it does not answer".into(),
        };
        ErrorKind::Unreachable(format!(
            "the server could not be reached for {:?}: {why}",
            name.as_str()
        ))
        .into()
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

fn place(sent: Moment, now_us: u64, deadline_ms: u64) -> Moment {
    let left = Duration::from_micros(deadline_ms.saturating_mul(1000).saturating_sub(now_us));
    sent.plus(left).minus(margin(left))
}

/// The client's task.
struct Task {
    core: Arc<Core>,
    done: bool,
}

impl Task {
    fn new(core: Arc<Core>) -> Self {
        Self { core, done: false }
    }

    async fn run(mut self) {
        if let Err(panic) = AssertUnwindSafe(self.work()).catch_unwind().await {
            // A fault of ours. Whoever trusts this client must know.
            self.core.end();
            self.core.ended.send_replace(true);
            self.done = true;
            std::panic::resume_unwind(panic);
        }
        self.done = true;
    }

    async fn work(&self) {
        let core = &*self.core;
        let settle = async {
            core.reaper.run(core).await;
            // A courtesy: without it the server forgets us when our announcement runs out.
            let farewell = core.backend.announce(None, 0);
            let _ = tokio::time::timeout(FAREWELL, farewell).await;
        };
        tokio::select! {
            biased;
            () = settle => {}
            () = core.backend.drive() => {}
            () = core.watchdog.run(core) => {}
            () = core.waiters.run(core) => {}
            () = announce(core) => {}
            () = follow(core) => {}
        }
        core.backend.close().await;
        core.ended.send_replace(true);
    }

    /// The task is made on the thread: where there is none, no task is dropped and moved again.
    fn on_a_thread(core: Arc<Core>) -> std::io::Result<()> {
        let client = core.clone();
        core.clock
            .rooms()
            .open(async move { Task::new(client).run().await })
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.done || *self.core.ended.borrow() {
            return;
        }
        match Task::on_a_thread(self.core.clone()) {
            // The process may be about to end with its runtime. What was dropped before that is given back first.
            Ok(()) => self.core.reaper.wait_settled(LAST_WORDS),
            Err(error) => {
                tracing::error!(%error, "no thread for a client whose runtime shut down; its holds will lapse");
            }
        }
    }
}

/// How often a client says who it is. The server forgets it after three times that.
const ANNOUNCED: Duration = Duration::from_secs(30);
/// How long the farewell of an ending client may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a runtime that shuts down is kept for what was dropped but not given back yet.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Keeps this client known to whoever asks who is in the way.
async fn announce(core: &Core) {
    let info = this_process();
    let mut generation = core.backend.generation();
    loop {
        generation.mark_unchanged();
        let announced = core.backend.announce(Some(&info), millis(ANNOUNCED * 3)).await;
        let rest = if announced.is_ok() {
            ANNOUNCED
        } else {
            Duration::from_secs(1)
        };
        tokio::select! {
            biased;
            () = core.clock.sleep_until(core.clock.now().plus(rest)) => {}
            // A server that comes back empty has forgotten it.
            Ok(()) = generation.changed() => {}
        }
    }
}

/// Asks about everything whose link was made anew.
async fn follow(core: &Core) {
    let mut generation = core.backend.generation();
    let mut since = *generation.borrow_and_update();
    while generation.changed().await.is_ok() {
        // It may be another server, whose clock is another.
        *core.server_time.lock() = None;
        let now = *generation.borrow_and_update();
        observe::linked(now);
        let concerned = |name: &Name| core.backend.relinked(name, since);
        core.waiters.recheck(core, concerned);
        core.watchdog.recheck(core, concerned);
        since = now;
    }
    std::future::pending().await
}

fn this_process() -> ClientInfo {
    let program = std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    ClientInfo {
        host: gethostname::gethostname().to_string_lossy().into_owned(),
        pid: std::process::id(),
        program: program.unwrap_or_else(|| "unknown".into()),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}
