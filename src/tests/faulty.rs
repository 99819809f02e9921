//! A backend that goes wrong as told, and clients, clocks and futures that move only by hand.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::backend::embedded::{Embedded, EmbeddedBackend};
use crate::backend::{Backend, Failure, Heard, Later, Told};
use crate::client::Relatch;
use crate::clock::Clock;
use crate::config::Config;
use crate::core::{Core, Home};
use crate::error::{Error, ErrorKind};
use crate::guard::{ReadGuard, UpgradableGuard, WriteGuard};
use crate::lock::RwLock;
use crate::owner::Owner;
use crate::protocol::{
    Call, ClientId, ClientInfo, HeldRow, Mode, Name, Operation, Push, Release, Reply, Snapshot,
};

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The server says no, and nothing has happened.
    Refuse,
    /// It never arrives.
    LoseRequest,
    /// It happens; the reply is lost.
    LoseReply,
    /// Given up for lost, it arrives when [`Wire::deliver_late`] says so.
    Late,
    /// It happens when [`Wire::let_go`] says so. If the caller has gone by then, it arrives late.
    Slow,
    /// It happens, and the reply comes when [`Wire::let_go`] says so.
    SlowReply,
    /// It never arrives, and only [`Wire::heal`] tells the caller so.
    NeverSent,
    /// It happens, and only [`Wire::heal`] tells the caller that there will be no reply.
    NeverHeard,
    /// Two copies arrive; the second one's reply is heard. (The second copy of a release says that it is one.)
    Twice,
}

impl Fault {
    pub(super) const ALL: [Fault; 9] = [
        Fault::Refuse,
        Fault::LoseRequest,
        Fault::LoseReply,
        Fault::Late,
        Fault::Slow,
        Fault::SlowReply,
        Fault::NeverSent,
        Fault::NeverHeard,
        Fault::Twice,
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Acquire,
    Release,
    Downgrade,
    Renew,
    Withdraw,
    Poll,
    Revoke,
    Inspect,
}

impl Kind {
    fn of(call: &Call) -> Self {
        match call.operation {
            Operation::Acquire(_) => Kind::Acquire,
            Operation::Release(_) => Kind::Release,
            Operation::Downgrade(_) => Kind::Downgrade,
            Operation::Renew(_) => Kind::Renew,
            Operation::Withdraw(_) => Kind::Withdraw,
            Operation::Poll(_) => Kind::Poll,
            Operation::Revoke(_) => Kind::Revoke,
            Operation::Inspect(_) => Kind::Inspect,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushes {
    Through,
    Lost,
    Kept,
}

/// What the test moves of a [`Faulty`] backend.
pub(super) struct Wire {
    /// Under another client's id, so that a copy can still arrive when its client has gone.
    server: EmbeddedBackend,
    script: Mutex<Script>,
    go: watch::Sender<bool>,
    healed: watch::Sender<bool>,
    generation: watch::Sender<u64>,
    core: Mutex<Weak<Core>>,
    /// How many calls the server has answered.
    answered: AtomicUsize,
    /// Who asks who a client is gets no answer.
    pub(super) nobody_is_known: AtomicBool,
}

struct Script {
    by_number: HashMap<usize, Fault>,
    by_kind: HashMap<Kind, Fault>,
    calls: Vec<Kind>,
    late: Vec<Call>,
    pushes: Pushes,
    kept: Vec<(Push, Option<Told>)>,
}

impl Wire {
    /// From here on calls are counted, from 0, and these go wrong.
    pub(super) fn arm(&self, faults: &[(usize, Fault)]) {
        let mut script = self.script.lock();
        script.calls.clear();
        script.by_number = faults.iter().copied().collect();
    }

    /// Every call of this kind goes wrong, until healed.
    pub(super) fn fail(&self, kind: Kind, fault: Fault) {
        self.healed.send_replace(false);
        self.go.send_replace(false);
        self.script.lock().by_kind.insert(kind, fault);
    }

    /// Lets this kind through again; what is under way stays so.
    pub(super) fn spare(&self, kind: Kind) {
        self.script.lock().by_kind.remove(&kind);
    }

    /// What was called since [`arm`](Self::arm).
    pub(super) fn calls(&self) -> Vec<Kind> {
        self.script.lock().calls.clone()
    }

    /// How many calls the server has answered so far.
    pub(super) fn answered(&self) -> usize {
        self.answered.load(Ordering::Acquire)
    }

    pub(super) fn let_go(&self) {
        self.go.send_replace(true);
    }

    /// From now on everything goes well.
    pub(super) fn heal(&self) {
        let mut script = self.script.lock();
        script.by_number.clear();
        script.by_kind.clear();
        drop(script);
        self.go.send_replace(true);
        self.healed.send_replace(true);
    }

    /// Copies that were given up for lost arrive. Tells how many.
    pub(super) fn deliver_late(&self) -> usize {
        let late = std::mem::take(&mut self.script.lock().late);
        for call in &late {
            self.apply(call);
        }
        late.len()
    }

    pub(super) fn has_late(&self) -> bool {
        !self.script.lock().late.is_empty()
    }

    pub(super) fn pushes(&self, mode: Pushes) {
        self.script.lock().pushes = mode;
    }

    pub(super) fn deliver_pushes(&self) {
        let (kept, core) = (
            std::mem::take(&mut self.script.lock().kept),
            self.core.lock().upgrade(),
        );
        if let Some(core) = core {
            kept.into_iter().for_each(|(push, told)| core.push(push, told));
        }
    }

    /// The link was made anew.
    pub(super) fn relink(&self) {
        self.generation.send_modify(|number| *number += 1);
    }

    fn apply(&self, call: &Call) -> Option<Heard> {
        self.server.call_now(call)
    }

    fn next(&self, call: &Call) -> Option<Fault> {
        let mut script = self.script.lock();
        let number = script.calls.len();
        let kind = Kind::of(call);
        script.calls.push(kind);
        script
            .by_number
            .get(&number)
            .or_else(|| script.by_kind.get(&kind))
            .copied()
    }

    fn push(&self, push: Push, told: Option<Told>) {
        let mut script = self.script.lock();
        match script.pushes {
            Pushes::Through => {
                drop(script);
                if let Some(core) = self.core.lock().upgrade() {
                    core.push(push, told);
                }
            }
            Pushes::Lost => {}
            Pushes::Kept => script.kept.push((push, told)),
        }
    }
}

/// A copy that is under way: if nobody waits for it any more it arrives late.
struct UnderWay<'a> {
    wire: &'a Wire,
    call: Option<&'a Call>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(call) = self.call {
            self.wire.script.lock().late.push(call.clone());
        }
    }
}

pub(super) struct Faulty {
    inner: EmbeddedBackend,
    wire: Arc<Wire>,
}

fn unknown() -> Failure {
    Failure::Unknown(ErrorKind::Unreachable("the link broke".into()).into())
}

async fn opened(gate: &watch::Sender<bool>) {
    let _ = gate.subscribe().wait_for(|open| *open).await;
}

impl Faulty {
    fn apply(&self, call: &Call) -> Result<Heard, Failure> {
        let answer = self.inner.call(call).now_or_never();
        self.wire.answered.fetch_add(1, Ordering::AcqRel);
        answer.expect("an embedded server answers at once")
    }
}

impl Backend for Faulty {
    fn call<'a>(&'a self, call: &'a Call) -> Later<'a, Result<Heard, Failure>> {
        let wire = &*self.wire;
        let fault = wire.next(call);
        Box::pin(async move {
            match fault {
                None => self.apply(call),
                Some(Fault::Refuse) => Err(Failure::No(ErrorKind::Server("refused".into()).into())),
                Some(Fault::LoseRequest) => Err(unknown()),
                Some(Fault::LoseReply) => {
                    let _ = self.apply(call);
                    Err(unknown())
                }
                Some(Fault::Late) => {
                    wire.script.lock().late.push(call.clone());
                    Err(unknown())
                }
                Some(Fault::Slow) => {
                    let mut copy = UnderWay {
                        wire,
                        call: Some(call),
                    };
                    opened(&wire.go).await;
                    copy.call = None;
                    self.apply(call)
                }
                Some(Fault::SlowReply) => {
                    let heard = self.apply(call);
                    opened(&wire.go).await;
                    heard
                }
                Some(Fault::NeverSent) => {
                    opened(&wire.healed).await;
                    Err(unknown())
                }
                Some(Fault::NeverHeard) => {
                    let _ = self.apply(call);
                    opened(&wire.healed).await;
                    Err(unknown())
                }
                Some(Fault::Twice) => {
                    let _ = self.apply(call);
                    let mut again = call.clone();
                    if let Operation::Release(release) = &mut again.operation {
                        release.again = true;
                    }
                    self.apply(&again)
                }
            }
        })
    }

    fn announce<'a>(&'a self, info: Option<&'a ClientInfo>, for_ms: u64) -> Later<'a, Result<(), Failure>> {
        self.inner.announce(info, for_ms)
    }

    fn clients<'a>(&'a self, ids: &'a [ClientId]) -> Later<'a, Result<Vec<Option<ClientInfo>>, Failure>> {
        if self.wire.nobody_is_known.load(Ordering::Acquire) {
            return Box::pin(std::future::pending());
        }
        self.inner.clients(ids)
    }

    fn generation(&self) -> watch::Receiver<u64> {
        self.wire.generation.subscribe()
    }

    fn trouble(&self) -> Option<Error> {
        None
    }

    fn drive(&self) -> Later<'_, ()> {
        Box::pin(std::future::pending())
    }

    fn close(&self) -> Later<'_, ()> {
        self.inner.close()
    }
}

/// A client over a [`Faulty`] backend.
pub(super) struct Client {
    pub(super) relatch: Relatch,
    /// Does not keep the client going.
    pub(super) core: Arc<Core>,
    pub(super) wire: Arc<Wire>,
}

impl Client {
    pub(super) fn new(server: &Embedded, home: Home) -> Self {
        Self::with(server, Config::default(), home)
    }

    pub(super) fn with(server: &Embedded, config: Config, home: Home) -> Self {
        let id = ClientId::random();
        let wire = Arc::new(Wire {
            server: server.join(ClientId::random(), config.tuning(), Box::new(|_, _| {})),
            script: Mutex::new(Script {
                by_number: HashMap::new(),
                by_kind: HashMap::new(),
                calls: Vec::new(),
                late: Vec::new(),
                pushes: Pushes::Through,
                kept: Vec::new(),
            }),
            go: watch::channel(false).0,
            healed: watch::channel(false).0,
            generation: watch::channel(1).0,
            core: Mutex::default(),
            answered: AtomicUsize::new(0),
            nobody_is_known: AtomicBool::new(false),
        });
        let pushes = wire.clone();
        let backend = Faulty {
            inner: server.join(
                id,
                config.tuning(),
                Box::new(move |push, told| pushes.push(push, told)),
            ),
            wire: wire.clone(),
        };
        let core = Arc::new(Core::new(
            id,
            config,
            server.clock().of_a_client(),
            Arc::new(backend),
        ));
        *wire.core.lock() = Arc::downgrade(&core);
        let handle = core.clone().start(home).expect("a client");
        Self {
            relatch: Relatch::of(handle),
            core,
            wire,
        }
    }

    /// On the runtime that the test runs on.
    pub(super) fn here(server: &Embedded) -> Self {
        Self::new(server, Home::Runtime(tokio::runtime::Handle::current()))
    }

    pub(super) fn lock(&self) -> RwLock {
        self.relatch.rwlock(NAME).expect("a name")
    }

    /// What it still knows of, if anything.
    pub(super) fn leftovers(&self) -> Option<&'static str> {
        [
            (self.core.watchdog.is_empty(), "the watchdog"),
            (self.core.waiters.is_empty(), "the waiters"),
            (self.core.reaper.is_settled(), "the reaper"),
        ]
        .into_iter()
        .find_map(|(empty, what)| (!empty).then_some(what))
    }

    /// What the server has, asked past all faults.
    pub(super) fn server_has(&self) -> Snapshot {
        let call = Call {
            name: Name::new(NAME).expect("a name"),
            operation: Operation::Inspect(100),
        };
        match self.wire.apply(&call).map(|heard| heard.answer.reply) {
            Some(Reply::Inspect(snapshot)) => snapshot,
            other => panic!("{other:?}"),
        }
    }

    /// The server's time.
    pub(super) fn server_ms(&self) -> u64 {
        let call = Call {
            name: Name::new(NAME).expect("a name"),
            operation: Operation::Inspect(0),
        };
        self.wire
            .apply(&call)
            .expect("an answer")
            .answer
            .now_us
            .expect("a time")
            / 1000
    }

    /// Gives back behind its holder's back.
    pub(super) fn take_back(&self, row: &HeldRow) {
        self.wire.apply(&Call {
            name: Name::new(NAME).expect("a name"),
            operation: Operation::Release(Release {
                request: row.request,
                owner: row.owner,
                fence: 0,
                again: false,
                mark: false,
            }),
        });
    }

    /// What the server has of one owner.
    pub(super) fn server_has_of(&self, owner: &Owner) -> Vec<HeldRow> {
        let mut rows = self.server_has().holding;
        rows.retain(|row| row.owner == owner.id());
        rows
    }
}

pub(super) const NAME: &str = "catalog";

/// A guard of any mode.
#[derive(Debug)]
pub(super) enum Any {
    Read(ReadGuard),
    Upgradable(UpgradableGuard),
    Write(WriteGuard),
}

impl Any {
    pub(super) fn is_held(&self) -> bool {
        match self {
            Any::Read(guard) => guard.is_held(),
            Any::Upgradable(guard) => guard.is_held(),
            Any::Write(guard) => guard.is_held(),
        }
    }

    pub(super) fn mode(&self) -> Mode {
        match self {
            Any::Read(_) => Mode::Read,
            Any::Upgradable(_) => Mode::Upgradable,
            Any::Write(_) => Mode::Write,
        }
    }

    pub(super) async fn release(self) -> Result<(), Error> {
        match self {
            Any::Read(guard) => guard.release().await,
            Any::Upgradable(guard) => guard.release().await,
            Any::Write(guard) => guard.release().await,
        }
    }
}

/// A future that is polled by hand.
pub(super) struct ByHand<T> {
    future: Pin<Box<dyn Future<Output = T>>>,
    woken: Arc<Woken>,
}

struct Woken(AtomicU64);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

impl<T> ByHand<T> {
    pub(super) fn new(future: impl Future<Output = T> + 'static) -> Self {
        Self {
            future: Box::pin(future),
            woken: Arc::new(Woken(AtomicU64::new(1))),
        }
    }

    pub(super) fn poll(&mut self) -> Option<T> {
        self.woken.0.store(0, Ordering::Release);
        let waker = Waker::from(self.woken.clone());
        match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    /// Does it want to be polled?
    pub(super) fn is_woken(&self) -> bool {
        self.wakes() > 0
    }

    /// How often it was woken since it was polled.
    pub(super) fn wakes(&self) -> u64 {
        self.woken.0.load(Ordering::Acquire)
    }
}

/// Lets the clients' tasks do what they can do now.
pub(super) async fn work() {
    for _ in 0..6 {
        tokio::task::yield_now().await;
    }
}

/// A rest between two tries.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

/// Lets the clients' tasks do what they can do within a short time: enough for some tries, too short for a lease or a claim.
pub(super) async fn settle(clock: &Clock) {
    work().await;
    for _ in 0..12 {
        clock.advance(PAUSE);
        work().await;
    }
}

/// Runs on a runtime of its own, with the clients on it; nothing else does anything.
pub(super) fn alone(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
        .block_on(test);
}
