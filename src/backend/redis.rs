//! The backend on a Redis server: a call becomes one script, its reply the answer.
//!
//! - `scripts` knows what is said: keys, arguments, replies, pushes;
//! - `link` keeps the connections up, `dial` makes them, `tls` secures them, `check` looks at who is there, `sentinel` finds it;
//! - `cluster` knows which of many servers a call goes to, and `slots` why;
//! - `options` and `refusal` know addresses and errors.
//!
//! What this file keeps: a call is executed once (it is sent again when the server did not know the script, or says that another node
//! serves it: then it did not run),
//! and unless the server said no in so many words, whatever went wrong makes its outcome *unknown*. A reply that is not the reply
//! to this very call takes the link down, as nothing on it can be believed then.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::redis::{Cmd, RedisError, ServerError, ServerErrorKind, Value};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;

use crate::backend::{Backend, Failure, Heard, Later, Look, Sink, Together};
use crate::clock::{Clock, Moment};
use crate::error::{Error, ErrorKind};
use crate::protocol::{Acquire, Call, ClientId, ClientInfo, Member, Name, Operation, Polled, Replicas};
use crate::script::{Ran, Run};
use crate::state::Tuning;

#[cfg(feature = "cli")]
mod bare;
mod check;
mod cluster;
mod dial;
mod fenced;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod link;
mod look;
mod options;
mod refusal;
mod replicas;
mod scripts;
mod sentinel;
#[cfg(feature = "cli")]
pub(crate) mod simulated;
mod slots;
#[cfg(test)]
mod tests;
#[cfg(feature = "tls")]
mod tls;
mod together;

#[cfg(feature = "cli")]
pub use bare::Bare;
pub use look::Examination;
pub(crate) use options::RedisOptions;
pub use scripts::CallEncoding;

use cluster::Cluster;
use link::{Linker, Live, Way, jitter};
use refusal::{Refusal, classify, printable};
use scripts::Encoded;

/// How long a call that is to be repeated is held back, at least and on top of it at most: callers repeat at once.
const HELD_BACK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(80));

/// How long closing waits for the connections to be closed.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often a call is sent on because a node says that another one is meant.
const HOPS: u32 = 5;

/// How long what a server refused for the moment is remembered, for whoever gives up.
const RECENT: Duration = Duration::from_secs(1);

/// One client's view of a Redis server, or of a cluster of them.
pub(crate) struct RedisBackend {
    route: Route,
    client: ClientId,
    clock: Clock,
    tuning: Tuning,
    /// Numbers the calls; a reply echoes its call's.
    calls: AtomicU64,
    /// What a server refused for the moment, last.
    put_off: Mutex<Option<(Moment, Error)>>,
}

/// Which link serves a call.
enum Route {
    /// Always the same.
    One(Arc<Linker>),
    /// Whichever leads to the master of the slot.
    Cluster(Arc<Cluster>),
}

impl Route {
    /// The slot of a key, where that matters.
    fn slot(&self, of: impl FnOnce() -> u16) -> u16 {
        match self {
            Route::One(_) => 0,
            Route::Cluster(_) => of(),
        }
    }

    /// Waits for a link if there is none. `None` once it is closed.
    async fn way(&self, slot: u16) -> Option<Way> {
        match self {
            Route::One(linker) => {
                let live = linker.live().await?;
                Some(Way {
                    linker: linker.clone(),
                    live,
                })
            }
            Route::Cluster(cluster) => cluster.way(slot).await,
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Route::One(linker) => linker.is_closed(),
            Route::Cluster(cluster) => cluster.is_closed(),
        }
    }

    /// Whether an answer that took so long is to be believed.
    async fn believes(&self, way: &Way, took: Duration) -> bool {
        match self {
            Route::One(_) => true,
            Route::Cluster(cluster) => cluster.believes(way, took).await,
        }
    }

    /// Where the server says that the slot is, if it says so.
    async fn elsewhere(&self, slot: u16, way: &Way, error: &ServerError) -> Option<Elsewhere> {
        let Route::Cluster(cluster) = self else {
            return None;
        };
        // What a script says of other nodes is no server's word: it has run.
        if refusal::by_script(error) {
            return None;
        }
        let details = error.details().unwrap_or_default();
        match error.code() {
            "MOVED" => {
                let (named, place) = slots::redirection(details, &cluster::place_of(way))?;
                cluster.moved(named, &place, way);
                (named == slot).then_some(Elsewhere::ForGood)
            }
            // For this one call: the slot is being moved, and its keys are there already.
            "ASK" => {
                let (named, place) = slots::redirection(details, &cluster::place_of(way))?;
                let way = cluster.way_by(&place).await?;
                (named == slot).then_some(Elsewhere::ThisTime(way))
            }
            "CLUSTERDOWN" => {
                cluster.doubt(slot);
                None
            }
            _ => None,
        }
    }
}

enum Elsewhere {
    ForGood,
    ThisTime(Way),
}

/// What a command was answered, by whom, and when it had certainly not been sent yet.
struct Answered {
    way: Way,
    sent: Moment,
    value: Value,
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisBackend").field(&self.place()).finish()
    }
}

impl RedisBackend {
    /// Reads the address; connects to nothing before [`drive`](Backend::drive).
    pub(crate) fn new(
        options: RedisOptions,
        client: ClientId,
        tuning: Tuning,
        clock: Clock,
        sink: Sink,
    ) -> Result<Arc<Self>, Error> {
        let target = options.target()?;
        Ok(Self::over(options, target, client, tuning, clock, sink))
    }

    /// As [`new`](Self::new), over the network of a simulation.
    #[cfg(feature = "cli")]
    pub(crate) fn simulated(
        network: Arc<dyn simulated::Network>,
        options: RedisOptions,
        client: ClientId,
        tuning: Tuning,
        clock: Clock,
        sink: Sink,
    ) -> Result<Arc<Self>, Error> {
        let mut target = options.target()?;
        target.at = options::Where::One(options::Address::Simulated(network));
        Ok(Self::over(options, target, client, tuning, clock, sink))
    }

    fn over(
        options: RedisOptions,
        target: options::Target,
        client: ClientId,
        tuning: Tuning,
        clock: Clock,
        sink: Sink,
    ) -> Arc<Self> {
        let route = match &target.at {
            options::Where::Cluster(seeds) => {
                let seeds = seeds.clone();
                Route::Cluster(Cluster::new(options, target, &seeds, client, clock.clone(), sink))
            }
            _ => Route::One(Arc::new(Linker::new(
                options,
                target,
                client,
                clock.clone(),
                sink,
            ))),
        };
        Arc::new(Self {
            route,
            client,
            clock,
            tuning,
            calls: AtomicU64::new(1),
            put_off: Mutex::new(None),
        })
    }

    /// The server's address, without credentials.
    pub(crate) fn place(&self) -> &str {
        match &self.route {
            Route::One(linker) => &linker.target.place,
            Route::Cluster(cluster) => cluster.place(),
        }
    }

    /// Resolves on the first link, or with the first thing that went wrong: then [`drive`](Backend::drive), which must run, goes on trying.
    pub(crate) async fn ready(&self, within: Duration) -> Result<(), Error> {
        let ready = async {
            match &self.route {
                Route::One(linker) => linker.ready(within).await,
                Route::Cluster(cluster) => cluster.ready(within).await,
            }
        };
        self.clock.rooms().within(ready).await
    }

    /// Of a single server.
    #[cfg(test)]
    fn linker(&self) -> &Linker {
        match &self.route {
            Route::One(linker) => linker,
            Route::Cluster(_) => unreachable!("asked of a single server"),
        }
    }

    fn is_cluster(&self) -> bool {
        matches!(self.route, Route::Cluster(_))
    }

    async fn way(&self, slot: u16) -> Result<Way, Failure> {
        match self.route.way(slot).await {
            Some(way) => Ok(way),
            None => Err(Failure::No(ErrorKind::Closed.into())),
        }
    }

    /// What a user awaits needs the timers of a runtime; see [`room`](crate::room).
    fn within<'a, T>(&'a self, work: impl Future<Output = T> + Send + 'a) -> Later<'a, T> {
        Box::pin(self.clock.rooms().within(work))
    }

    /// The connection failed under a command, which may have been executed.
    fn lost(&self, way: &Way, error: &RedisError) -> Failure {
        if self.route.is_closed() {
            return Failure::Unknown(ErrorKind::Closed.into());
        }
        let error = way.live.peer.broken(error);
        way.linker.fault(&way.live, &error);
        Failure::Unknown(error)
    }

    /// The server answered with an error.
    async fn refused(&self, way: &Way, what: &str, error: &ServerError) -> Failure {
        let peer = &way.live.peer;
        let error = match classify(&peer.place, what, error) {
            Refusal::Later(error) => error,
            // Followed as far as it leads; the nodes do not agree yet.
            Refusal::No(_) if self.is_cluster() && matches!(error.code(), "MOVED" | "ASK") => peer
                .unreachable(format_args!(
                    "says that another node serves {what}, and that one does not"
                )),
            Refusal::Elsewhere(error) => {
                way.linker.fault(&way.live, &error);
                error
            }
            Refusal::No(error) => return Failure::No(error),
            // Said of a script that came with its source, or of no script at all: it answers another call, replies are out of
            // step. What happened to this one is not known.
            refusal @ Refusal::NoScript => {
                let error = refusal.into_error();
                way.linker.fault(&way.live, &error);
                error
            }
        };
        *self.put_off.lock() = Some((self.clock.now(), error.clone()));
        sleep(HELD_BACK.0 + jitter(HELD_BACK.1)).await;
        Failure::Unknown(error)
    }

    /// Sends a command to whoever serves the slot: once, and again only where a server said that it had not executed it.
    ///
    /// `source` is that of the script, if the command runs one. `make` makes the command for a link: in full, if the script has to go with its
    /// source; and whether a node executes it that the slot is only being moved to.
    async fn deliver(
        &self,
        slot: u16,
        way: Way,
        what: impl Fn() -> String,
        source: Option<&str>,
        make: impl Fn(&Live, Form) -> Cmd,
    ) -> Result<Answered, Failure> {
        match self.send(slot, way, source, make).await? {
            Ok(answered) => Ok(answered),
            Err((way, error)) => Err(self.refused(&way, &what(), &error).await),
        }
    }

    /// The same, with what a server said against it as it said it.
    async fn send(
        &self,
        slot: u16,
        mut way: Way,
        source: Option<&str>,
        make: impl Fn(&Live, Form) -> Cmd,
    ) -> Result<Result<Answered, (Way, ServerError)>, Failure> {
        let mut asking = false;
        let mut hops = 0;
        loop {
            let live = way.live.clone();
            let form = Form { full: false, asking };
            let mut sent = self.clock.now();
            let open = live.pace.open(sent);
            let mut value = send(&live, &make(&live, form), asking).await;
            if let (Ok(unknown), Some(source)) = (&value, source)
                && is_no_script(unknown)
            {
                // The server has restarted, or was told to forget; or nobody has used this one yet.
                sent = self.clock.now();
                value = bring(&live, source, |form| make(&live, form), form).await;
            }
            open.answered(self.clock.now());
            let error = match value {
                Ok(_) if !self.route.believes(&way, self.clock.now().since(sent)).await => {
                    return Err(Failure::Unknown(live.peer.unreachable(
                        "answered late, and the other nodes do not say that it is still in charge",
                    )));
                }
                Ok(Value::ServerError(error)) => error,
                Ok(value) => return Ok(Ok(Answered { way, sent, value })),
                Err(error) => return Err(self.lost(&way, &error)),
            };
            match self.route.elsewhere(slot, &way, &error).await {
                Some(elsewhere) if hops < HOPS => {
                    hops += 1;
                    (way, asking) = match elsewhere {
                        Elsewhere::ForGood => (self.way(slot).await?, false),
                        Elsewhere::ThisTime(way) => (way, true),
                    };
                }
                _ => return Ok(Err((way, error))),
            }
        }
    }

    /// What a server refused for the moment, not long ago.
    fn put_off(&self) -> Option<Error> {
        let put_off = self.put_off.lock();
        let (at, error) = put_off.as_ref()?;
        (self.clock.now().since(*at) < RECENT).then(|| error.clone())
    }

    /// A command on one key.
    async fn command(&self, key: &str, command: Cmd) -> Result<Value, Failure> {
        let slot = self.route.slot(|| slots::slot_of_plain(key));
        let way = self.way(slot).await?;
        let what = || format!("the key {key}");
        let answered = self
            .deliver(slot, way, what, None, |_, _| command.clone())
            .await?;
        Ok(answered.value)
    }

    fn encode(&self, call: &Call, id: u64, slot: u16, live: &Live, trust: bool) -> Encoded {
        scripts::encode_for(call, id, &self.tuning, trust, &self.channels(slot, live))
    }

    /// Where those listen who use a slot.
    fn channels(&self, slot: u16, live: &Live) -> Cow<'static, str> {
        if live.sharded {
            slots::channels(slot).into()
        } else {
            scripts::CHANNEL.into()
        }
    }

    /// What is listened to for this call.
    async fn listen(&self, cluster: &Cluster, slot: u16, way: &Way, call: &Call) {
        match &call.operation {
            Operation::Acquire(op) => {
                cluster
                    .listen(slot, way, Duration::from_millis(op.lease_ms))
                    .await;
            }
            Operation::Renew(ops) => {
                let longest = ops.iter().map(|op| op.lease_ms).max().unwrap_or(0);
                cluster.keep_listening(slot, Duration::from_millis(longest));
            }
            Operation::Poll(_) => cluster.keep_listening(slot, Duration::ZERO),
            _ => {}
        }
    }
}

/// How a command is sent.
#[derive(Clone, Copy)]
struct Form {
    /// With the script's source.
    full: bool,
    /// To a node that the slot is being moved to.
    asking: bool,
}

async fn send(live: &Live, command: &Cmd, asking: bool) -> Result<Value, RedisError> {
    let mut connection = live.connection.clone();
    if !asking {
        return connection.send_packed_command(command).await;
    }
    // It holds for the very next command only; a pipeline is sent as one.
    let mut both = ::redis::Pipeline::with_capacity(2);
    both.cmd("ASKING").add_command(command.clone());
    let answers = connection.send_packed_commands(&both, 0, 2).await?;
    let mut answers = answers.into_iter();
    // What is said against the asking is the reason for what is said to the command.
    match answers.next() {
        Some(refused @ Value::ServerError(_)) => Ok(refused),
        _ => Ok(answers.next().unwrap_or(Value::Nil)),
    }
}

/// Has a server that does not know a script learn it and run it, on one connection in one go, so that nothing can come in between; with its source
/// in the call where scripts may not be loaded.
async fn bring(
    live: &Live,
    source: &str,
    make: impl Fn(Form) -> Cmd,
    form: Form,
) -> Result<Value, RedisError> {
    let mut both = ::redis::Pipeline::with_capacity(3);
    both.cmd("SCRIPT").arg("LOAD").arg(source);
    if form.asking {
        both.cmd("ASKING");
    }
    both.add_command(make(form));
    let answers = live
        .connection
        .clone()
        .send_packed_commands(&both, 0, 2 + usize::from(form.asking))
        .await?;
    let mut answers = answers.into_iter();
    let loaded = answers.next().unwrap_or(Value::Nil);
    let ran = answers.next_back().unwrap_or(Value::Nil);
    if !is_no_script(&ran) {
        return Ok(ran);
    }
    if matches!(&loaded, Value::ServerError(error) if !forbids(error)) {
        // It would not have it: it is no Lua, say.
        return Ok(loaded);
    }
    let whole = send(live, &make(Form { full: true, ..form }), form.asking).await?;
    // Where neither may be done, this is the right to give: scripts are run by their hash here.
    Ok(match (&loaded, &whole) {
        (Value::ServerError(_), Value::ServerError(error)) if forbids(error) => loaded,
        _ => whole,
    })
}

fn is_no_script(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error)
        if error.kind() == Some(ServerErrorKind::NoScript) && !refusal::by_script(error))
}

/// Whether a command may not be used, or is not there at all.
fn forbids(error: &ServerError) -> bool {
    if refusal::by_script(error) {
        return false;
    }
    let details = error.details().unwrap_or_default();
    match error.kind() {
        Some(ServerErrorKind::NoPerm) => !details.contains(" key"),
        _ => details.starts_with("unknown command"),
    }
}

impl Backend for RedisBackend {
    fn call<'a>(&'a self, call: &'a Call) -> Later<'a, Result<Heard, Failure>> {
        self.within(async move {
            let slot = self.route.slot(|| slots::slot_of(&call.name));
            let way = self.way(slot).await?;
            if let Route::Cluster(cluster) = &self.route {
                self.listen(cluster, slot, &way, call).await;
            }
            let id = self.calls.fetch_add(1, Ordering::Relaxed);
            let what = || format!("the key {}", scripts::keys(&call.name)[0]);
            let source = Some(scripts::script_of(&call.operation).source);
            let answered = self
                .deliver(slot, way, what, source, |live, form| {
                    // Nobody listens yet where the slot is only being moved to.
                    let trust = live.trust && !form.asking;
                    let encoded = self.encode(call, id, slot, live, trust);
                    #[cfg(feature = "cli")]
                    if let options::Address::Simulated(network) = &live.peer.address {
                        network.calling(id, call, self.tuning, trust);
                    }
                    if form.full || live.by_source {
                        encoded.eval()
                    } else {
                        encoded.evalsha()
                    }
                })
                .await?;
            let Answered { way, sent, value } = answered;
            match scripts::decode(call, id, value) {
                Ok(answer) => {
                    way.live.prove(sent, answer.now_us);
                    Ok(Heard { sent, answer })
                }
                Err(malformed) => {
                    let error = way.live.peer.unreachable(format_args!(
                        "gave no answer to what it was asked ({})",
                        printable(&malformed.to_string())
                    ));
                    way.linker.fault(&way.live, &error);
                    Err(Failure::Unknown(error))
                }
            }
        })
    }

    fn acquire_all<'a>(&'a self, parts: &'a [(Name, Acquire)]) -> Later<'a, Result<Together, Failure>> {
        self.within(self.acquire_together(parts))
    }

    fn run<'a>(&'a self, run: &'a Run) -> Later<'a, Result<Ran, Failure>> {
        self.within(self.run_fenced(run))
    }

    /// Keys of several names go in one call where they are in one slot.
    fn together(&self, name: &Name) -> u64 {
        u64::from(self.route.slot(|| slots::slot_of(name)))
    }

    fn announce<'a>(&'a self, info: Option<&'a ClientInfo>, for_ms: u64) -> Later<'a, Result<(), Failure>> {
        self.within(async move {
            let key = client_key(self.client);
            let command = match info {
                Some(info) => {
                    let mut set = ::redis::cmd("SET");
                    set.arg(&key).arg(write_info(info)).arg("PX").arg(for_ms.max(1));
                    set
                }
                None => {
                    let mut del = ::redis::cmd("DEL");
                    del.arg(&key);
                    del
                }
            };
            self.command(&key, command).await.map(drop)
        })
    }

    fn clients<'a>(&'a self, ids: &'a [ClientId]) -> Later<'a, Result<Vec<Option<ClientInfo>>, Failure>> {
        self.within(async move {
            // All at once; what is ready together is sent together.
            let gets = ids.iter().map(|id| {
                let key = client_key(*id);
                let mut get = ::redis::cmd("GET");
                get.arg(&key);
                async move {
                    // Of a cluster's servers one that is not there must not keep from telling what the others know.
                    match &self.route {
                        Route::Cluster(cluster) if !cluster.is_linked(slots::slot_of_plain(&key)) => None,
                        _ => Some(self.command(&key, get).await),
                    }
                }
            });
            let mut clients = Vec::with_capacity(ids.len());
            for value in futures_util::future::join_all(gets).await {
                clients.push(match value {
                    Some(Ok(Value::BulkString(text))) => read_info(&text),
                    // Of one key it is as good as nothing; of the only server it is no answer.
                    Some(Err(unknown @ Failure::Unknown(_))) if !self.is_cluster() => return Err(unknown),
                    None | Some(_) => None,
                });
            }
            Ok(clients)
        })
    }

    fn replicated<'a>(
        &'a self,
        name: &'a Name,
        member: Member,
        replicas: Replicas,
    ) -> Later<'a, Result<(Polled, u64), Failure>> {
        self.within(async move {
            let slot = self.route.slot(|| slots::slot_of(name));
            let Way { live, .. } = self.way(slot).await?;
            let call = Call {
                name: name.clone(),
                operation: Operation::Poll(vec![member]),
            };
            let call_id = self.calls.fetch_add(1, Ordering::Relaxed);
            let (tell, told) = oneshot::channel();
            let ask = replicas::Ask {
                encoded: self.encode(&call, call_id, slot, &live, live.trust),
                by_source: live.by_source,
                call,
                call_id,
                slot,
                replicas: replicas.number,
                within: replicas.within,
                tell,
            };
            let lost = || Failure::Unknown(live.peer.unreachable("closed the connection"));
            live.asks.send(ask).map_err(|_| lost())?;
            let told = told.await.unwrap_or_else(|_| Err(lost()));
            if let (Route::Cluster(cluster), Err(Failure::Unknown(_))) = (&self.route, &told) {
                // It may have moved: that is for others to say. What is known of it is not given up for that: it may be a connection that broke, or
                // another's question.
                cluster.suspect();
            }
            told
        })
    }

    fn generation(&self) -> watch::Receiver<u64> {
        match &self.route {
            Route::One(linker) => linker.generation(),
            Route::Cluster(cluster) => cluster.generation(),
        }
    }

    fn relinks(&self) -> watch::Receiver<u64> {
        match &self.route {
            Route::One(linker) => linker.generation(),
            Route::Cluster(cluster) => cluster.relinks(),
        }
    }

    fn relinked(&self, name: &Name, since: u64) -> bool {
        match &self.route {
            Route::One(_) => true,
            Route::Cluster(cluster) => cluster.relinked(name, since),
        }
    }

    fn trouble(&self) -> Option<Error> {
        let down = match &self.route {
            Route::One(linker) => linker.trouble(),
            Route::Cluster(cluster) => cluster.trouble(),
        };
        down.or_else(|| self.put_off())
    }

    fn trouble_of(&self, name: &Name) -> Option<Error> {
        match &self.route {
            Route::One(_) => self.trouble(),
            // That another master is away is in nobody's way here.
            Route::Cluster(cluster) => cluster
                .trouble_of(slots::slot_of(name))
                .or_else(|| self.put_off()),
        }
    }

    fn look(&self) -> Option<&dyn Look> {
        Some(self)
    }

    fn pushes(&self) -> bool {
        match &self.route {
            Route::One(linker) => linker.pushes(),
            Route::Cluster(cluster) => cluster.pushes(),
        }
    }

    fn remarks(&self) -> Vec<String> {
        match &self.route {
            Route::One(linker) => linker.remarks(),
            Route::Cluster(cluster) => cluster.remarks(),
        }
    }

    fn drive(&self) -> Later<'_, ()> {
        match &self.route {
            Route::One(linker) => Box::pin(linker.run()),
            Route::Cluster(cluster) => Box::pin(cluster.run()),
        }
    }

    fn close(&self) -> Later<'_, ()> {
        match &self.route {
            Route::One(linker) => Box::pin(linker.close(PATIENCE)),
            Route::Cluster(cluster) => Box::pin(cluster.close(PATIENCE)),
        }
    }
}

/// What a server knows a script by.
pub(crate) fn sha1_of(script: &str) -> String {
    ::redis::Script::new(script).get_hash().to_owned()
}

/// What puts a key into the slot of a name.
pub(crate) fn hash_tag(name: &Name) -> String {
    let key = scripts::keys(name).into_iter().next().unwrap_or_default();
    let from = "relatch:1:".len();
    let until = key.find('}').map_or(key.len(), |at| at + 1);
    key[from..until].to_owned()
}

/// Where a client says who it is.
fn client_key(client: ClientId) -> String {
    format!("relatch:1:client:{}", client.wire())
}

/// Four lines: host, pid, program, version.
fn write_info(info: &ClientInfo) -> String {
    let line = |text: &str| text.replace(['\n', '\r'], " ");
    format!(
        "{}\n{}\n{}\n{}",
        line(&info.host),
        info.pid,
        line(&info.program),
        line(&info.version)
    )
}

/// Lines after the fourth are from versions to come. Others wrote it, and a person will read it.
fn read_info(text: &[u8]) -> Option<ClientInfo> {
    let text = std::str::from_utf8(text).ok()?;
    let mut lines = text.split('\n');
    Some(ClientInfo {
        host: printable(lines.next()?),
        pid: lines.next()?.parse().ok()?,
        program: printable(lines.next()?),
        version: printable(lines.next()?),
    })
}
