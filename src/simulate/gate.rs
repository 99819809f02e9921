//! A client's process: it can be stopped, and then none of its tasks does a step, whatever it waits for.

use std::fmt;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::{AbortHandle, JoinHandle};

use crate::backend::Later;
use crate::backend::redis::simulated::{Network, Stream};
use crate::protocol::Call;
use crate::state::Tuning;

use super::log::{Lane, Mark};
use super::plan::Fault;
use super::world::{Meant, World};

pub(super) struct Gate {
    pub(super) client: usize,
    world: Arc<World>,
    state: Mutex<GateState>,
}

#[derive(Default)]
struct GateState {
    shut: bool,
    dead: bool,
    waiting: Vec<Waker>,
    opened_ms: u64,
    tasks: Vec<AbortHandle>,
}

impl Gate {
    pub(super) fn new(world: &Arc<World>, client: usize) -> Arc<Self> {
        Arc::new(Self {
            client,
            world: world.clone(),
            state: Mutex::default(),
        })
    }

    pub(super) fn shut(&self) {
        self.state.lock().shut = true;
    }

    /// For good.
    pub(super) fn kill(&self) {
        let mut state = self.state.lock();
        state.shut = true;
        state.dead = true;
    }

    pub(super) fn open(&self, now_ms: u64) {
        let mut state = self.state.lock();
        if state.dead || !state.shut {
            return;
        }
        state.shut = false;
        state.opened_ms = now_ms;
        state.waiting.drain(..).for_each(Waker::wake);
    }

    /// Since when its tasks run; `None` while they don't.
    pub(super) fn open_since(&self) -> Option<u64> {
        let state = self.state.lock();
        (!state.shut).then_some(state.opened_ms)
    }

    fn is_open(&self, cx: &Context<'_>) -> bool {
        let mut state = self.state.lock();
        if state.shut {
            state.waiting.push(cx.waker().clone());
        }
        !state.shut
    }

    pub(super) fn spawn(
        self: &Arc<Self>,
        what: Lane,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let gate = self.clone();
        let task = async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                let said = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
                gate.world
                    .violate(|| format!("{what} panicked: {}", said.unwrap_or_default()));
            }
        };
        let handle = tokio::spawn(Gated {
            gate: self.clone(),
            task: Box::pin(task),
            yielded: false,
        });
        self.state.lock().tasks.push(handle.abort_handle());
        handle
    }

    pub(super) fn abort(&self) {
        self.state.lock().tasks.drain(..).for_each(|task| task.abort());
    }
}

struct Gated {
    gate: Arc<Gate>,
    task: Later<'static, ()>,
    yielded: bool,
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let world = &self.gate.world;
        if !world.polled() || !self.gate.is_open(cx) {
            return Poll::Pending;
        }
        // Whose turn it is hangs on more than who was woken first.
        if !self.yielded && world.draw(7) == 0 {
            self.yielded = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.yielded = false;
        self.task.as_mut().poll(cx)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl Network for Gate {
    fn connect(&self) -> Later<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let (delay, silent) = {
                let state = &mut *self.world.state();
                let silent = !state.calm && state.plan.does(Fault::Cut) && state.chance(30);
                (state.rng.u64(0..=state.plan.delay_ms), silent)
            };
            tokio::time::sleep(std::time::Duration::from_millis(delay)).await;
            if silent {
                std::future::pending::<()>().await;
            }
            let state = &mut *self.world.state();
            if !state.server.up {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let wire = state.connect(self.client);
            Ok(Box::new(ClientEnd {
                world: self.world.clone(),
                gate: state.gates[self.client].clone(),
                wire,
            }) as Box<dyn Stream>)
        })
    }

    fn calling(&self, number: u64, call: &Call, tuning: Tuning, trust: bool) {
        let meant = Meant {
            call: call.clone(),
            tuning,
            trust,
        };
        let state = &mut *self.world.state();
        state.meant.insert((self.client, number), Arc::new(meant));
    }
}

/// The client's end of a connection. While the process is stopped nothing is read: it stays in the socket.
struct ClientEnd {
    world: Arc<World>,
    gate: Arc<Gate>,
    wire: u64,
}

impl AsyncRead for ClientEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.gate.is_open(cx) {
            return Poll::Pending;
        }
        let state = &mut *self.world.state();
        let Some(wire) = state.wires.get_mut(&self.wire) else {
            return Poll::Ready(Ok(()));
        };
        if wire.inbox.is_empty() {
            if wire.ended {
                return Poll::Ready(Ok(()));
            }
            wire.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut some = wire.inbox.len().min(buf.remaining());
        if state.rng.u8(0..16) == 0 {
            some = state.rng.usize(1..=some);
        }
        let bytes: Vec<u8> = wire.inbox.drain(..some).collect();
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.gate.is_open(cx) {
            return Poll::Pending;
        }
        {
            let state = &mut *self.world.state();
            let Some(wire) = state.wires.get_mut(&self.wire).filter(|wire| !wire.ended) else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            let mut pending = std::mem::take(&mut wire.outbox);
            pending.extend(bytes);
            let mut read = 0;
            while let Some((words, length)) = command(&pending[read..]) {
                read += length;
                state.send(self.wire, words);
            }
            pending.drain(..read);
            if let Some(wire) = state.wires.get_mut(&self.wire) {
                wire.outbox = pending;
            }
        }
        self.world.settle();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for ClientEnd {
    fn drop(&mut self) {
        self.world.state().let_go(self.wire);
        self.world.settle();
    }
}

/// The first whole command in these bytes, and how many of them it is: an array of bulk strings.
fn command(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let mut at = 0;
    let number = |at: &mut usize| {
        let length = bytes[*at..].windows(2).position(|pair| pair == b"\r\n")?;
        let line = std::str::from_utf8(&bytes[*at + 1..*at + length]).ok()?;
        *at += length + 2;
        line.parse::<usize>().ok()
    };
    let count = number(&mut at)?;
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        if at >= bytes.len() {
            return None;
        }
        let length = number(&mut at)?;
        words.push(bytes.get(at..at + length)?.to_vec());
        at += length + 2;
        if at > bytes.len() {
            return None;
        }
    }
    Some((words, at))
}

impl World {
    pub(super) fn pause(&self, client: usize) {
        let state = &mut *self.state();
        state.gates[client].shut();
        state
            .log
            .mark(state.now_ms, Lane::Client(client), Mark::Paused, "");
    }

    pub(super) fn resume(&self, client: usize) {
        let state = &mut *self.state();
        state.gates[client].open(state.now_ms);
        state.log.mark(state.now_ms, Lane::Client(client), Mark::Idle, "");
        state
            .log
            .event(state.now_ms, Lane::Client(client), "wakes", || "wakes up".into());
    }
}
