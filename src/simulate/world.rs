//! Virtual time, what is due in it, and the network.
//!
//! Everything random is drawn from one generator, everything that will happen stands in one agenda, and one task carries it
//! out. Time is the runtime's, which is paused: it moves when nobody has anything left to do.

use std::collections::{BTreeMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::protocol::{Call, ClientId, Name};
use crate::state::Tuning;

use super::gate::Gate;
use super::log::{Lane, Log, Mark};
use super::plan::{Fault, Plan};
use super::referee::Referee;
use super::server::Server;

/// A run that does so many steps will not end.
const ENDLESS: u64 = 3_000_000;

pub(super) struct World {
    begun: Instant,
    state: Mutex<State>,
    /// Something is due sooner than the network sleeps.
    sooner: Notify,
    /// A promise was broken, or the users are to stop.
    pub(super) over: Notify,
}

pub(super) struct State {
    pub(super) now_ms: u64,
    pub(super) rng: Rng,
    pub(super) plan: Plan,
    pub(super) log: Log,
    pub(super) server: Server,
    pub(super) referee: Referee,
    pub(super) wires: BTreeMap<u64, Wire>,
    pub(super) gates: Vec<Arc<Gate>>,
    /// What the calls of each client mean, by their numbers.
    pub(super) meant: BTreeMap<(usize, u64), Arc<Meant>>,
    pub(super) faults: BTreeMap<Fault, u64>,
    /// No more faults: from now on everybody must get on.
    pub(super) calm: bool,
    /// Since then.
    pub(super) calm_ms: u64,
    /// The first promise that was broken.
    pub(super) broken: Option<String>,
    agenda: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    polls: u64,
    /// Extra delay until then.
    pub(super) slow: (u64, u64),
}

pub(super) struct Meant {
    pub(super) call: Call,
    pub(super) tuning: Tuning,
    pub(super) trust: bool,
}

/// One connection, with both of its ends.
#[derive(Default)]
pub(super) struct Wire {
    pub(super) client: usize,
    /// Bytes that have arrived at the client.
    pub(super) inbox: VecDeque<u8>,
    /// What the client has written of a command that is not whole yet.
    pub(super) outbox: Vec<u8>,
    /// The client finds it ended.
    pub(super) ended: bool,
    pub(super) reader: Option<Waker>,
    /// The client has let it go.
    pub(super) dropped: bool,
    /// The server still believes in it.
    pub(super) open: bool,
    pub(super) subscribed: Option<ClientId>,
    /// Nothing arrives any more, and nobody is told.
    pub(super) lost_up: bool,
    pub(super) lost_down: bool,
    /// When the last of what is under way arrives; nothing overtakes.
    up_at: u64,
    down_at: u64,
}

pub(super) type Words = Vec<Vec<u8>>;

pub(super) enum Event {
    Request(u64, Words),
    /// A copy of a request, whose reply nobody hears.
    Copy(usize, Words),
    Bytes(u64, Vec<u8>),
    /// The client finds the connection closed.
    End(u64),
    /// The server does.
    Hangup(u64),
    /// A lease ends there about now: whoever had it must know.
    Look(Name),
}

impl World {
    pub(super) fn new(seed: u64, plan: Plan, rng: Rng, record: bool) -> Arc<Self> {
        let server = Server::new(&plan);
        let mut log = Log::new(record);
        log.event(0, Lane::World, seed, || format!("seed {seed}"));
        Arc::new(Self {
            begun: Instant::now(),
            state: Mutex::new(State {
                now_ms: 0,
                rng,
                plan,
                log,
                server,
                referee: Referee::default(),
                wires: BTreeMap::new(),
                gates: Vec::new(),
                meant: BTreeMap::new(),
                faults: BTreeMap::new(),
                calm: false,
                calm_ms: 0,
                broken: None,
                agenda: BTreeMap::new(),
                sequence: 0,
                polls: 0,
                slow: (0, 0),
            }),
            sooner: Notify::new(),
            over: Notify::new(),
        })
    }

    /// The state, at the present time.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        state.now_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        state
    }

    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// A number up to `most`.
    pub(super) fn draw(&self, most: u64) -> u64 {
        self.state().rng.u64(0..=most)
    }

    pub(super) fn event(&self, lane: Lane, digest: impl Hash, text: impl FnOnce() -> String) {
        let state = &mut *self.state();
        state.log.event(state.now_ms, lane, digest, text);
    }

    pub(super) fn mark(&self, lane: Lane, mark: Mark, name: &str) {
        let state = &mut *self.state();
        state.log.mark(state.now_ms, lane, mark, name);
    }

    pub(super) fn violate(&self, what: impl FnOnce() -> String) {
        self.state().violate(what);
        self.settle();
    }

    /// After anything was done to the state: wakes whom it concerns.
    pub(super) fn settle(&self) {
        self.sooner.notify_one();
        if self.state().broken.is_some() {
            self.over.notify_waiters();
        }
    }

    /// A task is polled. `false` when that goes on without end.
    pub(super) fn polled(&self) -> bool {
        let endless = {
            let state = &mut *self.state();
            state.polls += 1;
            if state.polls > ENDLESS {
                state.violate(|| "it goes on without end: tasks wake each other for ever".into());
            }
            state.polls > ENDLESS
        };
        if endless {
            self.settle();
        }
        !endless
    }

    /// The network and the server: carries out what is due. For ever.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            let next = self.carry_out();
            let sleep = async {
                match next {
                    Some(at_ms) => {
                        tokio::time::sleep_until(self.begun + Duration::from_millis(at_ms)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = sleep => {}
                () = self.sooner.notified() => {}
            }
        }
    }

    fn carry_out(&self) -> Option<u64> {
        loop {
            let state = &mut *self.state();
            let (&(at_ms, sequence), _) = state.agenda.first_key_value()?;
            if at_ms > state.now_ms {
                return Some(at_ms);
            }
            if let Some(event) = state.agenda.remove(&(at_ms, sequence)) {
                state.happen(sequence, event);
            }
            if state.broken.is_some() {
                self.over.notify_waiters();
                return None;
            }
        }
    }
}

impl State {
    pub(super) fn chance(&mut self, per_mille: u64) -> bool {
        self.rng.u64(0..1000) < per_mille
    }

    pub(super) fn violate(&mut self, what: impl FnOnce() -> String) {
        if self.broken.is_none() {
            let what = what();
            self.log
                .event(self.now_ms, Lane::World, "broken", || what.clone());
            self.broken = Some(what);
        }
    }

    pub(super) fn note(&mut self, fault: Fault, lane: Lane, text: impl FnOnce() -> String) {
        *self.faults.entry(fault).or_default() += 1;
        self.log
            .mark(self.now_ms, Lane::World, Mark::Fault, fault.as_str());
        self.log
            .event(self.now_ms, lane, fault, || format!("! {}", text()));
    }

    pub(super) fn at(&mut self, at_ms: u64, event: Event) {
        self.sequence += 1;
        self.agenda.insert((at_ms.max(self.now_ms), self.sequence), event);
    }

    /// How long something is under way.
    fn delay(&mut self) -> u64 {
        let usual = self.rng.u64(0..=self.plan.delay_ms);
        if self.calm {
            return usual.min(2);
        }
        let mut delay = usual;
        if self.slow.0 > self.now_ms {
            delay += self.rng.u64(0..=self.slow.1);
        }
        if self.plan.does(Fault::Delay) && self.chance(self.plan.per_mille) {
            delay += self.rng.u64(0..=self.plan.response_ms * 2);
            *self.faults.entry(Fault::Delay).or_default() += 1;
        }
        delay
    }

    /// Does it happen to this message?
    fn befalls(&mut self, fault: Fault) -> bool {
        !self.calm && self.plan.does(fault) && self.chance(self.plan.per_mille)
    }

    pub(super) fn connect(&mut self, client: usize) -> u64 {
        self.sequence += 1;
        let id = self.sequence;
        self.wires.insert(
            id,
            Wire {
                client,
                open: true,
                ..Wire::default()
            },
        );
        id
    }

    /// The client has written a whole command.
    pub(super) fn send(&mut self, id: u64, words: Words) {
        let delay = self.delay();
        let Some(wire) = self.wires.get_mut(&id) else {
            return;
        };
        let client = wire.client;
        let at_ms = wire.up_at.max(self.now_ms + delay);
        wire.up_at = at_ms;
        let is_call = words.first().is_some_and(|word| word.starts_with(b"EVAL"));
        if is_call && self.befalls(Fault::LoseRequest) {
            self.note(Fault::LoseRequest, Lane::Client(client), || {
                format!("a request is lost on connection {id}, and whatever follows it")
            });
            if let Some(wire) = self.wires.get_mut(&id) {
                wire.lost_up = true;
            }
        }
        if is_call && self.befalls(Fault::Repeat) {
            let later = at_ms + self.rng.u64(0..=self.plan.late_ms);
            self.note(Fault::Repeat, Lane::Client(client), || {
                "a request will arrive once more".into()
            });
            self.at(later, Event::Copy(client, words.clone()));
        }
        if self.wires.get(&id).is_some_and(|wire| !wire.lost_up) {
            self.at(at_ms, Event::Request(id, words));
        }
        if is_call && self.befalls(Fault::Cut) {
            self.note(Fault::Cut, Lane::Client(client), || {
                format!("connection {id} is cut under a request")
            });
            self.cut(id);
        }
    }

    /// The server writes.
    pub(super) fn reply(&mut self, id: u64, bytes: Vec<u8>, is_call: bool) {
        if is_call && self.befalls(Fault::LoseReply) {
            let client = self.wires.get(&id).map_or(0, |wire| wire.client);
            self.note(Fault::LoseReply, Lane::Client(client), || {
                format!("a reply is lost on connection {id}, and whatever follows it")
            });
            if let Some(wire) = self.wires.get_mut(&id) {
                wire.lost_down = true;
            }
        }
        if is_call && self.befalls(Fault::OutOfStep) {
            let client = self.wires.get(&id).map_or(0, |wire| wire.client);
            self.note(Fault::OutOfStep, Lane::Client(client), || {
                format!("a reply is missing on connection {id}: the next ones are out of step")
            });
            return;
        }
        self.down(id, bytes);
    }

    pub(super) fn push(&mut self, id: u64, bytes: Vec<u8>) {
        if self.befalls(Fault::LosePush) {
            let client = self.wires.get(&id).map_or(0, |wire| wire.client);
            self.note(Fault::LosePush, Lane::Client(client), || {
                "a push never comes".into()
            });
            return;
        }
        self.down(id, bytes);
    }

    fn down(&mut self, id: u64, bytes: Vec<u8>) {
        let delay = self.delay();
        let Some(wire) = self.wires.get_mut(&id).filter(|wire| !wire.lost_down) else {
            return;
        };
        wire.down_at = wire.down_at.max(self.now_ms + delay);
        let at_ms = wire.down_at;
        self.at(at_ms, Event::Bytes(id, bytes));
    }

    /// The client finds it ended at once, the server soon, or much later. What is under way may still arrive before that.
    pub(super) fn cut(&mut self, id: u64) {
        let late = if !self.calm && self.plan.does(Fault::HalfOpen) && self.chance(300) {
            *self.faults.entry(Fault::HalfOpen).or_default() += 1;
            self.plan.late_ms
        } else {
            5
        };
        let at_ms = self.now_ms + self.rng.u64(0..=late);
        self.at(self.now_ms, Event::End(id));
        self.at(at_ms, Event::Hangup(id));
    }

    /// The server's process ends: nothing that is under way to it is carried out any more.
    pub(super) fn down_with(&mut self, id: u64) {
        if let Some(wire) = self.wires.get_mut(&id) {
            wire.open = false;
            wire.subscribed = None;
        }
        let at_ms = self.now_ms + self.delay();
        self.at(at_ms, Event::Hangup(id));
    }

    /// The client lets it go.
    pub(super) fn let_go(&mut self, id: u64) {
        let late = if self.plan.does(Fault::HalfOpen) && !self.calm {
            *self.faults.entry(Fault::HalfOpen).or_default() += 1;
            self.plan.late_ms
        } else {
            self.plan.delay_ms
        };
        let delay = self.rng.u64(0..=late);
        if let Some(wire) = self.wires.get_mut(&id) {
            wire.dropped = true;
            let at_ms = wire.up_at.max(self.now_ms + delay);
            self.at(at_ms, Event::Hangup(id));
        }
    }

    fn happen(&mut self, sequence: u64, event: Event) {
        match event {
            Event::Request(id, words) => {
                if self.server.stalled_until > self.now_ms {
                    // Where it stood, as nothing overtakes.
                    self.agenda
                        .insert((self.server.stalled_until, sequence), Event::Request(id, words));
                    return;
                }
                if self.server.up && self.wires.get(&id).is_some_and(|wire| wire.open) {
                    self.execute(Some(id), self.wires[&id].client, &words);
                }
            }
            Event::Copy(client, words) => {
                if self.server.up {
                    self.execute(None, client, &words);
                }
            }
            Event::Bytes(id, bytes) => {
                if let Some(wire) = self.wires.get_mut(&id)
                    && !wire.ended
                    && !wire.dropped
                {
                    wire.inbox.extend(bytes);
                    wire.wake();
                }
            }
            Event::End(id) => {
                if let Some(wire) = self.wires.get_mut(&id) {
                    wire.ended = true;
                    wire.wake();
                }
            }
            Event::Hangup(id) => {
                if let Some(wire) = self.wires.get_mut(&id) {
                    wire.open = false;
                    wire.subscribed = None;
                    wire.ended = true;
                    wire.wake();
                    if wire.dropped {
                        self.wires.remove(&id);
                    }
                }
            }
            Event::Look(name) => self.look(&name),
        }
    }
}

impl Wire {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}
