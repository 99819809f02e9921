//! A simulation of the whole client, from one seed: what `relatch simulate` and `tests/simulate.rs` run.
//!
//! Several clients, each the real one (lock, guard, watchdog, waiters, reaper, and the supervisor of the link with the crate `redis`
//! under it), on a simulated network, with a simulated server that answers with the machine of `state.rs`, in virtual time. Everything that is
//! left to chance comes from the seed: **the same seed gives the same run**, in every process.
//!
//! | file | what it is |
//! |---|---|
//! | `plan` | what is drawn from the seed first: settings, kinds of faults |
//! | `world` | virtual time, its agenda, and the network that carries messages late, twice or not at all |
//! | `gate` | a client's process, which can be stopped; its ends of connections |
//! | `server` | RESP3 over the machine; restarts, replicas, a clock that is set |
//! | `work` | users: random programs over the public interface |
//! | `referee` | what is promised, checked on every guard at every step |
//! | `log` | the trace, its hash, and the timeline |
//!
//! A run has three parts. First there is trouble. Then there is none, and **everybody must get on**: whoever waits gets in, all users end, and
//! nothing is left on the server or in any client, at once unless something died or was forgotten, else when leases have run out. Last,
//! every user takes every name to write and to read, with no way out but to get it, and again nothing is left.
//!
//! # How far it can be believed
//!
//! - Not in it: threads (a client's task that moves to another runtime is tested in `src/tests/rehoming.rs`), real sockets (`tests/link.rs`), Lua
//!   (`scripts` against the machine).
//! - [`Flaw`]s are broken worlds that it must find; `tests/simulate.rs` tries each.
//! - Breaking the client's own code was tried as well. Found within 15 seeds: no margin taken off leases; a dropped acquisition that is not
//!   withdrawn; a lost hold that is given back before its guard is told; a dropped guard that is not given back. *Not* found, as something slower makes
//!   up for it: no poll, or no renewal, right after the link was made anew. `src/tests/truth.rs` has those.
//! - What keeps a run the same: randomness from `entropy` alone, `biased` in every `select!`, no decision in an order that a hasher gives, no
//!   `tokio::sync::watch` with several waiters whose order matters (it wakes them in random order).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use serde::Serialize;

use crate::client::{Builder, Relatch};
use crate::clock::{Clock, Skew};
use crate::core::{Core, Home};
use crate::entropy::Seeded;
use crate::owner::Owner;

mod gate;
mod log;
mod plan;
mod referee;
mod server;
mod work;
mod world;

use gate::Gate;
use log::{Lane, Mark};
use plan::Plan;
use server::BACK_MS;
use work::User;
use world::World;

pub use log::Interval;
pub use plan::{Fault, Flaw};

/// How a seed is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Write down what happens. It changes nothing of it.
    pub record: bool,
    /// Break something on purpose.
    pub flaw: Option<Flaw>,
}

/// What came of a seed.
#[derive(Debug, Serialize)]
pub struct Run {
    /// Which.
    pub seed: u64,
    /// The promise that was broken.
    pub broken: Option<String>,
    /// Of everything that happened, in order.
    #[serde(serialize_with = "hexadecimal")]
    pub hash: u64,
    /// How many things happened.
    pub steps: u64,
    /// How long it was, on the simulated clock.
    pub virtual_ms: u64,
    /// How often each fault was made.
    pub faults: BTreeMap<Fault, u64>,
    /// What users did.
    pub tally: Tally,
    /// What happened, if it was recorded: the end of it, and all of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<String>,
    /// See [`trace`](Self::trace).
    #[serde(skip)]
    pub whole_trace: Vec<String>,
    /// Who waited and held, if it was recorded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<String>,
    /// The same for a picture.
    #[serde(skip)]
    pub intervals: Vec<Interval>,
}

/// A hash in JSON, whose numbers many readers round.
///
/// # Errors
///
/// The serializer's.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub fn hexadecimal<S: serde::Serializer>(hash: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{hash:016x}"))
}

/// What users did, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Tally {
    /// Guards.
    pub acquired: u64,
    /// Upgrades and downgrades.
    pub turned: u64,
    /// Guards that were lost while they were in use.
    pub lost: u64,
    /// Tries that found somebody in the way.
    pub busy: u64,
    /// Waits that ran out.
    pub timeouts: u64,
    /// Acquisitions and releases that the server did not answer.
    pub unreachable: u64,
    /// Writes with a stale fence that a store refused.
    pub stale_writes: u64,
    /// Looks at a guard that a server had forgotten, which is not held against it.
    pub excused: u64,
}

/// Runs a seed.
///
/// # Panics
///
/// If the system can't give a runtime.
pub fn run(seed: u64, options: Options) -> Run {
    #[allow(clippy::expect_used, reason = "documented")]
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let _seeded = Seeded::new(seed);
    runtime.block_on(simulate(seed, options))
}

/// A client: its process, and what keeps it going.
struct Process {
    gate: Arc<Gate>,
    core: Arc<Core>,
    relatch: Option<Relatch>,
    crashed: bool,
    users: Vec<Arc<User>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

async fn simulate(seed: u64, options: Options) -> Run {
    let mut rng = Rng::with_seed(seed);
    let plan = Plan::draw(&mut rng, options.flaw);
    let world = World::new(seed, plan, rng, options.record);
    let tally = Arc::new(parking_lot::Mutex::new(Tally::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let mut processes = begin(&world, &tally, &stop);
    let network = tokio::spawn(world.clone().run());

    let over = world.over.notified();
    tokio::select! {
        biased;
        () = over => {}
        () = course(&world, &mut processes, &stop) => {}
    }

    // Whatever is left ends here, without a word.
    for process in &processes {
        process.core.perish();
        process.gate.abort();
    }
    network.abort();
    tokio::task::yield_now().await;
    let state = &mut *world.state();
    let mut tally = tally.lock().clone();
    tally.stale_writes = state.referee.stale_writes_refused;
    tally.excused = state.referee.excuses;
    Run {
        seed,
        broken: state.broken.clone(),
        hash: state.log.hash(),
        steps: state.log.events,
        virtual_ms: state.now_ms,
        faults: state.faults.clone(),
        trace: state.log.trace(false),
        whole_trace: state.log.trace(true),
        timeline: state.log.timeline(state.now_ms),
        intervals: state.log.intervals(state.now_ms),
        tally,
    }
}

fn begin(world: &Arc<World>, tally: &Arc<parking_lot::Mutex<Tally>>, stop: &Arc<AtomicBool>) -> Vec<Process> {
    let (clients, tasks, names) = {
        let state = world.state();
        (state.plan.clients, state.plan.tasks, state.plan.names)
    };
    let shared = Owner::new();
    (0..clients)
        .map(|client| {
            let gate = Gate::new(world, client);
            let (clock, config) = {
                let state = &mut *world.state();
                state.gates.push(gate.clone());
                let rate = match state.plan.flaw {
                    Some(Flaw::ClocksApart) => 0.95,
                    // A1, for every client and the server, whose clock runs as the world does.
                    _ => 0.9901 + f64::from(state.rng.u32(0..=1989)) / 100_000.0,
                };
                let skew = Skew {
                    begun: world.begun(),
                    shown: Duration::from_secs(state.rng.u64(1..1_000_000)),
                    rate,
                };
                let mut config = state.plan.config.clone();
                if state.plan.flaw == Some(Flaw::Impatient) {
                    config.patience /= 10;
                }
                (Clock::simulated(skew), config)
            };
            let home = {
                let gate = gate.clone();
                Home::Simulated(Box::new(move |task| {
                    gate.spawn(Lane::Client(client), task);
                }))
            };
            #[allow(clippy::expect_used, reason = "what a plan draws can be used")]
            let handle = Builder::from(config)
                .simulated(clock, home, gate.clone())
                .expect("a client");
            let core = handle.core();
            world.state().referee.clients.insert(client, core.id);
            let relatch = Relatch::of(handle);
            let users: Vec<Arc<User>> = (0..tasks)
                .map(|task| {
                    let locks = (0..names)
                        .filter_map(|name| relatch.rwlock(&format!("{}", char::from(b'a' + name as u8))).ok())
                        .collect();
                    Arc::new(User {
                        world: world.clone(),
                        gate: gate.clone(),
                        relatch: relatch.clone(),
                        core: core.clone(),
                        client,
                        task,
                        owner: Owner::new(),
                        shared: shared.clone(),
                        locks,
                        stop: stop.clone(),
                        tally: tally.clone(),
                    })
                })
                .collect();
            let tasks = users
                .iter()
                .map(|user| gate.spawn(Lane::Task(client, user.task), user.clone().run()))
                .collect();
            Process {
                gate,
                core,
                relatch: Some(relatch),
                crashed: false,
                users,
                tasks,
            }
        })
        .collect()
}

/// Trouble, calm, the end. Returns when all is done, or can't be.
async fn course(world: &Arc<World>, processes: &mut [Process], stop: &AtomicBool) {
    let trouble = Duration::from_millis(world.state().plan.trouble_ms);
    let _ = tokio::time::timeout(trouble, trouble_them(world, processes)).await;

    stop.store(true, Ordering::Relaxed);
    calm_down(world, processes);
    let (config, lease_ms, forgot, back_ms) = {
        let state = world.state();
        let times = |fault| state.faults.get(&fault).copied().unwrap_or(0);
        let (lost, failed_over) = (times(Fault::LoseData), times(Fault::FailOver));
        (
            state.plan.config.clone(),
            state.plan.lease_ms,
            lost + failed_over > 0,
            (times(Fault::StepClock) + failed_over) * BACK_MS,
        )
    };
    let crashed = processes.iter().any(|process| process.crashed);

    // Everybody ends: holds are short, and whoever is in the way of somebody lapses within a lease.
    let leases = Duration::from_millis(lease_ms * 3 + back_ms) + config.claim * 3;
    let link = world.state().plan.link();
    let bound = (leases + link) * 40;
    if !all_end(world, processes, bound).await {
        return;
    }

    // Every client is linked and has given back what it had.
    let soon = link * 3 + Duration::from_secs(11);
    if !settles(world, soon, || unsettled(processes)).await {
        return;
    }
    // And nothing is left on the server: at once, if all who could give back are there, the server knows what it knew, and no copy of a
    // request is under way that its client does not know of.
    // A server whose clock is set back keeps a lease for longer than a client that can't reach it tries to give it back.
    let lingers = [Fault::Repeat, Fault::StepClock]
        .iter()
        .any(|fault| world.state().faults.contains_key(fault));
    let within = if crashed || forgot || lingers {
        soon + leases * 2
    } else {
        Duration::from_millis(200)
    };
    if !settles(world, within, || left(world)).await {
        return;
    }
    // And whoever wants it gets everything, and leaves nothing either.
    for process in processes.iter_mut().filter(|process| !process.crashed) {
        let client = process.gate.client;
        process.tasks = std::mem::take(&mut process.users)
            .into_iter()
            .map(|user| {
                let lane = Lane::Task(client, user.task);
                process.gate.spawn(lane, user.get_everything())
            })
            .collect();
    }
    if !all_end(world, processes, bound).await
        || !settles(world, soon, || unsettled(processes)).await
        || !settles(world, within, || left(world)).await
    {
        return;
    }
    for process in processes.iter_mut().filter(|process| !process.crashed) {
        if let Some(relatch) = process.relatch.take() {
            let client = process.gate.client;
            match relatch.close().await {
                Ok(()) => {}
                Err(error) => world.violate(|| format!("client {client} did not close: {error}")),
            }
        }
    }
}

/// Waits for all users. Tells whether they end.
async fn all_end(world: &World, processes: &mut [Process], within: Duration) -> bool {
    for process in processes.iter_mut().filter(|process| !process.crashed) {
        let client = process.gate.client;
        for (task, user) in process.tasks.iter_mut().enumerate() {
            if tokio::time::timeout(within, user).await.is_err() {
                world.violate(|| {
                    format!("task {client}.{task} does not get on, {within:?} after the last fault")
                });
                return false;
            }
        }
    }
    true
}

/// Waits until there is nothing to say.
async fn settles(world: &World, within: Duration, says: impl Fn() -> Option<String>) -> bool {
    let by = tokio::time::Instant::now() + within;
    while let Some(left) = says() {
        if tokio::time::Instant::now() > by {
            world.violate(|| format!("G7 left behind, {within:?} after everybody ended: {left}"));
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// What a client still has to do.
fn unsettled(processes: &[Process]) -> Option<String> {
    for process in processes.iter().filter(|process| !process.crashed) {
        let (client, core) = (process.gate.client, &process.core);
        if let Some(trouble) = core.backend.trouble() {
            return Some(format!("client {client} has no link: {trouble}"));
        }
        if *core.backend.generation().borrow() == 0 {
            return Some(format!("client {client} has never had a link"));
        }
        if !core.waiters.is_empty() {
            return Some(format!(
                "client {client} waits for something that nobody waits for"
            ));
        }
        if !core.watchdog.is_empty() {
            return Some(format!("client {client} renews something that nobody holds"));
        }
        if !core.reaper.is_settled() {
            return Some(format!("client {client} has something to give back"));
        }
    }
    None
}

/// What is still on the server.
fn left(world: &World) -> Option<String> {
    let state = world.state();
    let left = state.server.left(state.now_ms, state.plan.config.tuning());
    (!left.is_empty()).then(|| left.join(", "))
}

/// No fault is made from now on, and what was broken works.
fn calm_down(world: &World, processes: &[Process]) {
    {
        let state = &mut *world.state();
        state.calm = true;
        state.calm_ms = state.now_ms;
        state.slow = (0, 0);
        state.server.up = true;
        state.server.refuses = None;
        state.server.stalled_until = 0;
        state
            .log
            .event(state.now_ms, Lane::World, "calm", || "no more faults".into());
    }
    for process in processes.iter().filter(|process| !process.crashed) {
        world.resume(process.gate.client);
    }
}

/// Blow after blow, for ever. What of it ends by itself ends in the calm at the latest.
async fn trouble_them(world: &Arc<World>, processes: &mut [Process]) {
    let (blows, every_ms) = {
        let state = world.state();
        (state.plan.blows(), state.plan.every_ms)
    };
    let sample = async {
        loop {
            tokio::time::sleep(Duration::from_millis(40)).await;
            let state = &mut *world.state();
            let names: Vec<_> = state.server.names.keys().cloned().collect();
            for name in names {
                state.look(&name);
            }
        }
    };
    let strike = async {
        if blows.is_empty() {
            std::future::pending::<()>().await;
        }
        loop {
            let rest = world.draw(every_ms * 2);
            tokio::time::sleep(Duration::from_millis(rest)).await;
            let blow = {
                let state = &mut *world.state();
                blows[state.rng.usize(..blows.len())]
            };
            strike(world, processes, blow).await;
            world.settle();
        }
    };
    tokio::select! {
        biased;
        () = sample => {}
        () = strike => {}
    }
}

/// For how long: usually short, at times longer than any lease.
fn how_long(world: &World) -> u64 {
    let state = &mut *world.state();
    let most = match state.rng.u8(0..4) {
        0 => state.plan.lease_ms * 2,
        1 => state.plan.response_ms * 3,
        _ => 50,
    };
    state.rng.u64(0..=most)
}

async fn strike(world: &Arc<World>, processes: &mut [Process], blow: Fault) {
    let long = how_long(world);
    let client = usize::try_from(world.draw(processes.len() as u64 - 1)).unwrap_or(0);
    match blow {
        Fault::Delay => {
            let state = &mut *world.state();
            state.note(blow, Lane::World, || format!("everything is slow for {long} ms"));
            state.slow = (state.now_ms + long, state.plan.response_ms);
        }
        Fault::Cut => {
            let state = &mut *world.state();
            let all = state.rng.u8(0..4) == 0;
            let wires: Vec<u64> = state
                .wires
                .iter()
                .filter(|(_, wire)| !wire.ended && (all || wire.client == client))
                .map(|(id, _)| *id)
                .collect();
            let one = if wires.is_empty() {
                0
            } else {
                state.rng.usize(..wires.len())
            };
            for (_, wire) in wires.into_iter().enumerate().filter(|(at, _)| all || *at == one) {
                state.note(blow, Lane::World, || format!("connection {wire} is cut"));
                state.cut(wire);
            }
        }
        Fault::Stall => {
            let state = &mut *world.state();
            state.note(blow, Lane::World, || format!("the server stops for {long} ms"));
            state.server.stalled_until = state.now_ms + long;
        }
        Fault::Restart | Fault::LoseData | Fault::FailOver => {
            {
                let state = &mut *world.state();
                let behind = state.rng.u64(0..=500);
                state.note(blow, Lane::World, || {
                    format!(
                        "{} ({behind} ms behind, if at all), down for {long} ms",
                        blow.as_str()
                    )
                });
                state.server.up = false;
                let wires: Vec<u64> = state.wires.keys().copied().collect();
                for wire in wires {
                    state.down_with(wire);
                }
                let names = match blow {
                    Fault::Restart => state.server.names.clone(),
                    Fault::FailOver => state.server.replica(state.now_ms, behind),
                    _ => BTreeMap::new(),
                };
                if blow == Fault::Restart {
                    state.server.begin_again(names);
                } else {
                    state.restore(names);
                    if state.plan.flaw == Some(Flaw::FencesByCount) {
                        state.server.set_us -= 60_000_000;
                    }
                    if blow == Fault::FailOver {
                        let by_us = state.set_clock();
                        state.log.event(state.now_ms, Lane::World, by_us, || {
                            format!("the other server's clock is set by {by_us} us against this one's")
                        });
                    }
                }
            }
            world.settle();
            tokio::time::sleep(Duration::from_millis(long)).await;
            world.state().server.up = true;
        }
        Fault::FlushScripts => {
            let state = &mut *world.state();
            state.note(blow, Lane::World, || "the server forgets the scripts".into());
            state.server.flush_scripts();
        }
        Fault::Refuse => {
            {
                let state = &mut *world.state();
                let refusal = *REFUSALS.get(state.rng.usize(..REFUSALS.len())).unwrap_or(&"ERR");
                state.note(blow, Lane::World, || {
                    format!("the server answers {refusal:?} for {long} ms")
                });
                state.server.refuses = Some(refusal);
            }
            tokio::time::sleep(Duration::from_millis(long)).await;
            world.state().server.refuses = None;
        }
        Fault::StepClock => {
            let state = &mut *world.state();
            let by_us = if state.plan.flaw == Some(Flaw::ClockForward) {
                let by_us = i64::try_from(long + 20).unwrap_or(20) * 1000;
                state.server.set_us += by_us;
                by_us
            } else {
                state.set_clock()
            };
            state.note(blow, Lane::World, || {
                format!("the server's clock is set by {by_us} us")
            });
            // Leases end sooner there, or later: now it is known when.
            let names: Vec<_> = state.server.names.keys().cloned().collect();
            for name in names {
                state.look(&name);
            }
        }
        Fault::Pause => {
            if processes[client].crashed {
                return;
            }
            world
                .state()
                .note(blow, Lane::Client(client), || format!("is stopped for {long} ms"));
            world.pause(client);
            let world = world.clone();
            // Others may be struck in the meantime.
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(long)).await;
                world.resume(client);
            });
        }
        Fault::Crash => {
            let alive = processes.iter().filter(|process| !process.crashed).count();
            if alive <= 1 || processes[client].crashed || world.draw(3) > 0 {
                return;
            }
            let process = &mut processes[client];
            process.crashed = true;
            process.core.perish();
            {
                let state = &mut *world.state();
                state.note(blow, Lane::Client(client), || "its process ends".into());
                state.log.mark(state.now_ms, Lane::Client(client), Mark::Gone, "");
                state.gates[client].kill();
                state.referee.gone(client);
                let wires: Vec<u64> = state
                    .wires
                    .iter()
                    .filter(|(_, wire)| wire.client == client)
                    .map(|(id, _)| *id)
                    .collect();
                for wire in wires {
                    state.cut(wire);
                }
            }
        }
        // These happen to messages, or to futures.
        _ => {}
    }
}

const REFUSALS: [&str; 5] = [
    "OOM command not allowed when used memory > 'maxmemory'.",
    "LOADING Redis is loading the dataset in memory",
    "READONLY You can't write against a read only replica.",
    "BUSY Redis is busy running a script.",
    "NOPERM this user has no permissions to run the 'evalsha' command",
];
