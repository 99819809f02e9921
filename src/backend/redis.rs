//! The backend on a Redis server: a call becomes one script, its reply the answer.
//!
//! - `scripts` knows what is said: keys, arguments, replies, pushes;
//! - `link` keeps the connections up, `dial` makes them, `tls` secures them, `check` looks at who is there, `sentinel` finds it;
//! - `options` and `refusal` know addresses and errors.
//!
//! What this file keeps: a call is sent once (twice when the server did not know the script, which then did not run),
//! and unless the server said no in so many words, whatever went wrong makes its outcome *unknown*. A reply that is not the reply
//! to this very call takes the link down, as nothing on it can be believed then.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::redis::{Cmd, RedisError, ServerError, ServerErrorKind, Value};
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;

use crate::backend::{Backend, Failure, Heard, Later, Look, Sink, Together};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind};
use crate::protocol::{Acquire, Call, ClientId, ClientInfo, Member, Name, Operation, Polled, Replicas};
use crate::script::{Ran, Run};
use crate::state::Tuning;

mod check;
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
#[cfg(test)]
mod tests;
#[cfg(feature = "tls")]
mod tls;
mod together;

pub use look::Examination;
pub(crate) use options::RedisOptions;

use link::{Linker, Live, jitter};
use refusal::{Refusal, classify, printable};

/// How long a call that is to be repeated is held back, at least and on top of it at most: callers repeat at once.
const HELD_BACK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(80));

/// How long closing waits for the connections to be closed.
const PATIENCE: Duration = Duration::from_secs(1);

/// One client's view of a Redis server.
pub(crate) struct RedisBackend {
    linker: Arc<Linker>,
    tuning: Tuning,
    /// Numbers the calls; a reply echoes its call's.
    calls: AtomicU64,
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
        if matches!(target.at, options::Where::Cluster(_)) {
            return Err(ErrorKind::Invalid(
                "Redis Cluster is not supported yet: name a single server".into(),
            )
            .into());
        }
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
        Arc::new(Self {
            linker: Arc::new(Linker::new(options, target, client, clock, sink)),
            tuning,
            calls: AtomicU64::new(1),
        })
    }

    /// The server's address, without credentials.
    pub(crate) fn place(&self) -> &str {
        &self.linker.target.place
    }

    /// Resolves on the first link, or with the first thing that went wrong: then [`drive`](Backend::drive), which must run, goes on trying.
    pub(crate) async fn ready(&self, within: Duration) -> Result<(), Error> {
        self.linker.ready(within).await
    }

    async fn live(&self) -> Result<Arc<Live>, Failure> {
        match self.linker.live().await {
            Some(live) => Ok(live),
            None => Err(Failure::No(ErrorKind::Closed.into())),
        }
    }

    /// The connection failed under a command, which may have been executed.
    fn lost(&self, live: &Arc<Live>, error: &RedisError) -> Failure {
        if self.linker.is_closed() {
            return Failure::Unknown(ErrorKind::Closed.into());
        }
        let error = live.peer.broken(error);
        self.linker.fault(live, &error);
        Failure::Unknown(error)
    }

    /// The server answered with an error.
    async fn refused(&self, live: &Arc<Live>, what: &str, error: &ServerError) -> Failure {
        let error = match classify(&live.peer.place, what, error) {
            Refusal::Later(error) => error,
            Refusal::Elsewhere(error) => {
                self.linker.fault(live, &error);
                error
            }
            Refusal::No(error) => return Failure::No(error),
            // Said of a script that came with its source, or of no script at all: it answers another call, replies are out of
            // step. What happened to this one is not known.
            refusal @ Refusal::NoScript => {
                let error = refusal.into_error();
                self.linker.fault(live, &error);
                error
            }
        };
        sleep(HELD_BACK.0 + jitter(HELD_BACK.1)).await;
        Failure::Unknown(error)
    }

    async fn command(&self, command: &Cmd, what: &str) -> Result<Value, Failure> {
        let live = self.live().await?;
        match live.connection.clone().send_packed_command(command).await {
            Ok(Value::ServerError(error)) => Err(self.refused(&live, what, &error).await),
            Ok(value) => Ok(value),
            Err(error) => Err(self.lost(&live, &error)),
        }
    }
}

impl Backend for RedisBackend {
    fn call<'a>(&'a self, call: &'a Call) -> Later<'a, Result<Heard, Failure>> {
        Box::pin(async move {
            let live = self.live().await?;
            let id = self.calls.fetch_add(1, Ordering::Relaxed);
            let encoded = scripts::encode(call, id, &self.tuning, live.trust);
            let mut connection = live.connection.clone();
            #[cfg(feature = "cli")]
            if let options::Address::Simulated(network) = &live.peer.address {
                network.calling(id, call, self.tuning, live.trust);
            }

            let command = if live.by_source {
                encoded.eval()
            } else {
                encoded.evalsha()
            };
            let mut sent = self.linker.clock.now();
            let mut value = connection.send_packed_command(&command).await;
            if matches!(&value, Ok(Value::ServerError(error)) if error.kind() == Some(ServerErrorKind::NoScript))
            {
                // The server has restarted, or was told to forget. This makes it know the script as well.
                let command = encoded.eval();
                sent = self.linker.clock.now();
                value = connection.send_packed_command(&command).await;
                if matches!(&value, Ok(Value::ServerError(error)) if error.kind() == Some(ServerErrorKind::NoPerm))
                {
                    // Scripts may be brought, but not that way. The next link brings them.
                    let error = live.peer.unreachable("has forgotten the scripts");
                    self.linker.fault(&live, &error);
                    return Err(Failure::Unknown(error));
                }
            }

            let value = match value {
                Ok(Value::ServerError(error)) => {
                    let key = encoded.keys.first().map_or("", AsRef::as_ref);
                    return Err(self.refused(&live, &format!("the key {key}"), &error).await);
                }
                Ok(value) => value,
                Err(error) => return Err(self.lost(&live, &error)),
            };
            match scripts::decode(call, id, value) {
                Ok(answer) => {
                    live.prove();
                    Ok(Heard { sent, answer })
                }
                Err(malformed) => {
                    let error = live.peer.unreachable(format_args!(
                        "gave no answer to what it was asked ({})",
                        printable(&malformed.to_string())
                    ));
                    self.linker.fault(&live, &error);
                    Err(Failure::Unknown(error))
                }
            }
        })
    }

    fn acquire_all<'a>(&'a self, parts: &'a [(Name, Acquire)]) -> Later<'a, Result<Together, Failure>> {
        Box::pin(self.acquire_together(parts))
    }

    fn run<'a>(&'a self, run: &'a Run) -> Later<'a, Result<Ran, Failure>> {
        Box::pin(self.run_fenced(run))
    }

    fn announce<'a>(&'a self, info: Option<&'a ClientInfo>, for_ms: u64) -> Later<'a, Result<(), Failure>> {
        Box::pin(async move {
            let key = client_key(self.linker.client);
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
            self.command(&command, &format!("the key {key}")).await.map(drop)
        })
    }

    fn clients<'a>(&'a self, ids: &'a [ClientId]) -> Later<'a, Result<Vec<Option<ClientInfo>>, Failure>> {
        Box::pin(async move {
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            let mut gets = ::redis::Pipeline::with_capacity(ids.len());
            for id in ids {
                gets.cmd("GET").arg(client_key(*id));
            }
            let live = self.live().await?;
            let values = live
                .connection
                .clone()
                .send_packed_commands(&gets, 0, ids.len())
                .await;
            let values = values.map_err(|error| self.lost(&live, &error))?;
            let mut clients = Vec::with_capacity(ids.len());
            for value in values {
                clients.push(match value {
                    Value::BulkString(text) => read_info(&text),
                    // Of one key it is as good as nothing; of the server it is no answer.
                    Value::ServerError(error) => {
                        match self.refused(&live, "what clients announce", &error).await {
                            Failure::No(_) => None,
                            unknown @ Failure::Unknown(_) => return Err(unknown),
                        }
                    }
                    _ => None,
                });
            }
            clients.resize(ids.len(), None);
            Ok(clients)
        })
    }

    fn replicated<'a>(
        &'a self,
        name: &'a Name,
        member: Member,
        replicas: Replicas,
    ) -> Later<'a, Result<(Polled, u64), Failure>> {
        Box::pin(async move {
            let live = self.live().await?;
            let call = Call {
                name: name.clone(),
                operation: Operation::Poll(vec![member]),
            };
            let call_id = self.calls.fetch_add(1, Ordering::Relaxed);
            let (tell, told) = oneshot::channel();
            let ask = replicas::Ask {
                encoded: scripts::encode(&call, call_id, &self.tuning, live.trust),
                by_source: live.by_source,
                call,
                call_id,
                replicas: replicas.number,
                within: replicas.within,
                tell,
            };
            let lost = || Failure::Unknown(live.peer.unreachable("closed the connection"));
            live.asks.send(ask).map_err(|_| lost())?;
            told.await.unwrap_or_else(|_| Err(lost()))
        })
    }

    fn generation(&self) -> watch::Receiver<u64> {
        self.linker.generation()
    }

    fn trouble(&self) -> Option<Error> {
        self.linker.trouble()
    }

    fn look(&self) -> Option<&dyn Look> {
        Some(self)
    }

    fn pushes(&self) -> bool {
        self.linker.pushes()
    }

    fn remarks(&self) -> Vec<String> {
        self.linker.remarks()
    }

    fn drive(&self) -> Later<'_, ()> {
        Box::pin(self.linker.run())
    }

    fn close(&self) -> Later<'_, ()> {
        Box::pin(self.linker.close(PATIENCE))
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
