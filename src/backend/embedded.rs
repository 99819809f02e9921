//! The state machine in this process, behind a mutex.
//!
//! Everything a server would do it does, in the same words: leases lapse, grants are pushed, marks are kept. What it does not do
//! is fail: a call is answered before it returns, so nothing here is ever unknown.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::backend::{Backend, Failure, Heard, Later, Look, Sink, Together, Told};
use crate::clock::{Clock, Moment};
use crate::error::{Error, ErrorKind};
use crate::looking::{ChangeSet, Cursor, Page, Pattern};
use crate::protocol::{Acquire, Answer, Call, ClientId, ClientInfo, Ids, Name, Operation, Push};
use crate::state::{Context, LockState, Tuning, would_grant_all};

/// A lock server within this process, for programs that need no other and for tests.
///
/// [`Relatch::embedded`](crate::Relatch::embedded) makes one for itself. Name it when several clients shall meet on
/// it, as processes meet on a Redis server:
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use relatch::{Embedded, Relatch};
///
/// let server = Embedded::new();
/// let one = Relatch::builder().embedded_in(&server)?;
/// let other = Relatch::builder().embedded_in(&server)?;
///
/// let held = one.rwlock("report")?.write().await?;
/// assert!(other.rwlock("report")?.try_read().await?.is_none());
/// held.release().await?;
/// assert!(other.rwlock("report")?.try_read().await?.is_some());
/// # Ok::<(), relatch::Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Embedded(Arc<Server>);

struct Server {
    clock: Clock,
    /// Wall-clock time at the clock's origin, so that fences look like a server's.
    origin_us: u64,
    world: Mutex<World>,
}

#[derive(Default)]
struct World {
    locks: HashMap<Name, Slot>,
    /// Names that were seen idle, and when to see whether they may be forgotten.
    idle: VecDeque<(u64, Name)>,
    clients: Ids<ClientId, Member>,
    /// Who wants to hear which names change.
    observers: Vec<Weak<ChangeSet>>,
}

#[derive(Default)]
struct Slot {
    state: LockState,
    /// It is in the list of the idle.
    listed: bool,
}

struct Member {
    sink: Arc<Sink>,
    info: Option<ClientInfo>,
}

impl Default for Embedded {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}

impl Embedded {
    /// On the system's clock.
    pub fn new() -> Self {
        Self::with_clock(Clock::system())
    }

    /// On a clock that a test moves.
    pub fn with_clock(clock: Clock) -> Self {
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let origin = wall.saturating_sub(clock.now().0);
        Self(Arc::new(Server {
            clock,
            origin_us: u64::try_from(origin.as_micros()).unwrap_or(0),
            world: Mutex::default(),
        }))
    }

    pub(crate) fn clock(&self) -> Clock {
        self.0.clock.clone()
    }

    pub(crate) fn join(&self, id: ClientId, tuning: Tuning, sink: Sink) -> EmbeddedBackend {
        self.0.world.lock().clients.insert(
            id,
            Member {
                sink: Arc::new(sink),
                info: None,
            },
        );
        EmbeddedBackend {
            server: self.0.clone(),
            id,
            tuning,
            generation: watch::channel(1).0,
        }
    }

    /// Nobody holds and nobody waits, on any name.
    pub fn is_idle(&self) -> bool {
        self.0
            .world
            .lock()
            .locks
            .values()
            .all(|slot| slot.state.is_idle())
    }
}

/// One client's view of an [`Embedded`] server.
pub(crate) struct EmbeddedBackend {
    server: Arc<Server>,
    id: ClientId,
    tuning: Tuning,
    generation: watch::Sender<u64>,
}

impl EmbeddedBackend {
    fn answer(&self, call: &Call) -> Result<Heard, Failure> {
        let parts = call.parts();
        if !parts.is_empty() {
            let heard: Vec<Heard> = parts
                .iter()
                .map(|part| self.answer(part))
                .collect::<Result<_, _>>()?;
            return Ok(Heard {
                sent: heard[0].sent,
                answer: Answer::joined(heard.into_iter().map(|heard| heard.answer)),
            });
        }
        let (sent, answer) = self.in_one(|steps| {
            let answer = steps.on(&call.name, |state, context| state.apply(&call.operation, context));
            if !matches!(call.operation, Operation::Inspect(_)) {
                steps.changed(&call.name);
            }
            answer
        })?;
        Ok(Heard { sent, answer })
    }

    /// Some steps as one: nobody sees the world between them. Then who is told is told.
    fn in_one<T>(&self, steps: impl FnOnce(&mut Steps<'_>) -> T) -> Result<(Moment, T), Failure> {
        let sent = self.server.clock.now();
        let now_us = self.server.origin_us + u64::try_from(sent.0.as_micros()).unwrap_or(u64::MAX / 2);
        let (value, told) = {
            let mut world = self.server.world.lock();
            if !world.clients.contains_key(&self.id) {
                return Err(Failure::No(ErrorKind::Closed.into()));
            }
            let mut all = Steps {
                world: &mut world,
                now_us,
                tuning: self.tuning,
                told: Vec::new(),
            };
            (steps(&mut all), all.told)
        };
        for (sink, push) in told {
            sink(push, Some(Told { sent, now_us }));
        }
        Ok((sent, value))
    }
}

/// The world, while its mutex is held.
struct Steps<'a> {
    world: &'a mut World,
    now_us: u64,
    tuning: Tuning,
    told: Vec<(Arc<Sink>, Push)>,
}

impl Steps<'_> {
    /// Whoever observes hears that it did.
    fn changed(&mut self, name: &Name) {
        self.world.observers.retain(|set| {
            let observer = set.upgrade();
            observer.inspect(|set| set.name(name.clone())).is_some()
        });
    }

    /// A step of one name.
    fn on<T>(
        &mut self,
        name: &Name,
        step: impl FnOnce(&mut LockState, &Context<'_>) -> (T, Vec<(ClientId, Push)>),
    ) -> T {
        let World {
            locks, idle, clients, ..
        } = &mut *self.world;
        let heard = |client: ClientId| clients.contains_key(&client);
        let context = Context {
            now_us: self.now_us,
            tuning: self.tuning,
            heard: &heard,
        };
        let slot = match locks.get_mut(name) {
            Some(slot) => slot,
            None => locks.entry(name.clone()).or_default(),
        };
        let (value, pushes) = step(&mut slot.state, &context);
        let now_ms = self.now_us / 1000;
        if slot.state.is_idle() && !slot.listed {
            slot.listed = true;
            idle.push_back((now_ms + self.tuning.mark_ms, name.clone()));
        }
        // A fence is the time, and this clock does not go back: it grows without being remembered. A mark is needed
        // until it ends.
        if let Some((at_ms, _)) = idle.front()
            && *at_ms <= now_ms
            && let Some((_, name)) = idle.pop_front()
            && let Some(slot) = locks.get_mut(&name)
        {
            slot.listed = slot.state.is_idle() && slot.state.marked_until_ms() > now_ms;
            if slot.listed {
                idle.push_back((slot.state.marked_until_ms(), name));
            } else if slot.state.is_idle() {
                locks.remove(&name);
            }
        }
        self.told.extend(
            pushes
                .into_iter()
                .filter_map(|(client, push)| Some((clients.get(&client)?.sink.clone(), push))),
        );
        value
    }
}

impl Backend for EmbeddedBackend {
    fn call<'a>(&'a self, call: &'a Call) -> Later<'a, Result<Heard, Failure>> {
        Box::pin(std::future::ready(self.answer(call)))
    }

    fn acquire_all<'a>(&'a self, parts: &'a [(Name, Acquire)]) -> Later<'a, Result<Together, Failure>> {
        let outcome = self.in_one(|steps| {
            let why_not = would_grant_all(parts.iter().map(|(_, op)| op), |at, op| {
                steps.on(&parts[at].0, |state, context| state.would_grant(op, context))
            });
            if let Some(why_not) = why_not {
                return Err(why_not);
            }
            Ok(parts
                .iter()
                .map(|(name, op)| {
                    steps.changed(name);
                    let op = Operation::Acquire(op.clone());
                    steps.on(name, |state, context| state.apply(&op, context))
                })
                .collect::<Vec<_>>())
        });
        Box::pin(std::future::ready(outcome.map(|(sent, answers)| match answers {
            Ok(answers) => {
                Together::Granted(answers.into_iter().map(|answer| Heard { sent, answer }).collect())
            }
            Err(why_not) => Together::Not(why_not),
        })))
    }

    fn call_now(&self, call: &Call) -> Option<Heard> {
        self.answer(call).ok()
    }

    fn announce<'a>(&'a self, info: Option<&'a ClientInfo>, _for_ms: u64) -> Later<'a, Result<(), Failure>> {
        if let Some(member) = self.server.world.lock().clients.get_mut(&self.id) {
            member.info = info.cloned();
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn clients<'a>(&'a self, ids: &'a [ClientId]) -> Later<'a, Result<Vec<Option<ClientInfo>>, Failure>> {
        let world = self.server.world.lock();
        let infos = ids
            .iter()
            .map(|id| world.clients.get(id).and_then(|member| member.info.clone()))
            .collect();
        Box::pin(std::future::ready(Ok(infos)))
    }

    fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn trouble(&self) -> Option<Error> {
        None
    }

    fn look(&self) -> Option<&dyn Look> {
        Some(self)
    }

    fn drive(&self) -> Later<'_, ()> {
        Box::pin(std::future::pending())
    }

    fn close(&self) -> Later<'_, ()> {
        self.server.world.lock().clients.remove(&self.id);
        Box::pin(std::future::ready(()))
    }
}

impl Look for EmbeddedBackend {
    #[cfg(feature = "cli")]
    fn bare<'a>(&'a self, _name: &'a Name, _lease_ms: u64) -> Later<'a, Result<crate::Bare, Failure>> {
        let why = "an embedded server is in this process alone: there is no connection to it";
        Box::pin(std::future::ready(Err(Failure::No(
            ErrorKind::Invalid(why.into()).into(),
        ))))
    }

    /// All on one page: they are in this process anyway.
    fn names<'a>(&'a self, _pattern: &'a Pattern, _from: &'a Cursor) -> Later<'a, Result<Page, Failure>> {
        let names = self.server.world.lock().locks.keys().cloned().collect();
        Box::pin(std::future::ready(Ok((names, None))))
    }

    fn lines<'a>(&'a self, _from: &'a Cursor) -> Later<'a, Result<Page, Failure>> {
        let world = self.server.world.lock();
        let names = world
            .locks
            .iter()
            .filter(|(_, slot)| slot.state.is_waited_for())
            .map(|(name, _)| name.clone())
            .collect();
        Box::pin(std::future::ready(Ok((names, None))))
    }

    fn changes<'a>(&'a self, set: &'a Arc<ChangeSet>) -> Later<'a, Result<bool, Failure>> {
        let observers = &mut self.server.world.lock().observers;
        let new = !observers.iter().any(|other| other.as_ptr() == Arc::as_ptr(set));
        if new {
            observers.push(Arc::downgrade(set));
        }
        Box::pin(std::future::ready(Ok(new)))
    }

    fn listening<'a>(&'a self, clients: &'a [ClientId]) -> Later<'a, Result<Vec<Option<bool>>, Failure>> {
        let world = self.server.world.lock();
        let listening = clients
            .iter()
            .map(|id| (!id.is_quiet()).then(|| world.clients.contains_key(id)))
            .collect();
        Box::pin(std::future::ready(Ok(listening)))
    }

    #[cfg(feature = "redis")]
    fn examine(&self) -> Later<'_, Result<crate::backend::Examination, Failure>> {
        let why = "an embedded server is in this process alone: there is nothing to examine";
        Box::pin(std::future::ready(Err(Failure::No(
            ErrorKind::Invalid(why.into()).into(),
        ))))
    }
}
