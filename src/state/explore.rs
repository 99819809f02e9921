//! Every course of events of small scope, each step held against claims.
//!
//! A world is a [`LockState`], a time, which clients hear, and a *ghost*: what each request was told, from which follows what must be the
//! case. From each world every action that the scope knows is taken: new requests, copies of old ones, grants given back, time that passes,
//! clients that become deaf, data that is lost. What equals a world that was seen, up to names and times, is not gone into again. So within a
//! scope, and up to its depth, nothing is left out; and the first trace to a fault is a shortest one.
//!
//! `cargo test --lib explore` goes through a slice of every scope. The whole of a scope, or of all, or all to a depth:
//!
//! ```text
//! RELATCH_EXPLORE=copies cargo test --release --lib explore -- --nocapture
//! RELATCH_EXPLORE=all    cargo test --release --lib explore -- --nocapture
//! RELATCH_EXPLORE=5      cargo test --release --lib explore -- --nocapture
//! ```
//!
//! What lies deeper is looked for by long random walks, in `walks`.
//!
//! Assumed, as clients do it: what is released was heard of, so it is not withdrawn as well; what may have been sent twice, or was to be
//! upgraded, is released with a mark; no copy is under way for longer than a mark is kept; an owner's requests come through one client, unless
//! the scope says `roam`.
//!
//! Why not a model checker from a library (`stateright`): its claims are about states and have no message, ours are about steps; its
//! reduction by symmetry searches depth first, which gives no shortest traces; it brings a web server. What is needed is a hundred lines.

mod actions;
mod claims;
mod ghost;
mod normal;
mod teeth;
mod walks;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use self::actions::{Scope, actions};
use self::claims::{CLAIMS, liveness};
use self::ghost::{Action, Machine, Step, World};
use super::LockState;
use crate::protocol::Mode;

const ALL: &[Mode] = &[Mode::Read, Mode::Upgradable, Mode::Write];

/// One owner after the other asks, gives back and leaves; nothing else happens.
const QUIET: Scope = Scope {
    name: "quiet",
    owners: 4,
    clients: 1,
    requests: 4,
    slice: 4,
    depth: 7,
    modes: ALL,
    tries: false,
    roam: false,
    upgrades: false,
    downgrades: false,
    deafness: false,
    time: false,
    copies: false,
    renewals: false,
    revocation: false,
    loss: false,
};

/// Everything at once.
const EVERYTHING: Scope = Scope {
    name: "everything",
    owners: 4,
    clients: 2,
    requests: 5,
    slice: 3,
    depth: 5,
    tries: true,
    roam: true,
    upgrades: true,
    downgrades: true,
    deafness: true,
    time: true,
    copies: true,
    renewals: true,
    revocation: true,
    loss: true,
    ..QUIET
};

/// What is explored. `slice` is the depth in an ordinary run, `depth` that of the whole.
const SCOPES: &[Scope] = &[
    EVERYTHING,
    // The line and who enters from it: bands, phases, re-entry, upgrades.
    Scope {
        name: "line",
        requests: 5,
        slice: 5,
        depth: 7,
        upgrades: true,
        downgrades: true,
        ..QUIET
    },
    // Clients that become deaf while they wait, owners with requests by two clients.
    Scope {
        name: "deafness",
        owners: 3,
        clients: 2,
        slice: 4,
        depth: 6,
        roam: true,
        upgrades: true,
        deafness: true,
        ..QUIET
    },
    // Leases, claims and marks that end, renewals, revocation.
    Scope {
        name: "time",
        owners: 3,
        requests: 3,
        slice: 5,
        depth: 6,
        upgrades: true,
        time: true,
        renewals: true,
        revocation: true,
        ..QUIET
    },
    // What is sent twice and arrives late, in any order.
    Scope {
        name: "copies",
        owners: 2,
        requests: 3,
        slice: 5,
        depth: 6,
        upgrades: true,
        downgrades: true,
        time: true,
        copies: true,
        ..QUIET
    },
    // Two requests of an owner that nobody disturbs, for as long as anything new can happen.
    Scope {
        name: "alone",
        owners: 1,
        requests: 2,
        slice: 6,
        depth: 60,
        upgrades: true,
        downgrades: true,
        time: true,
        copies: true,
        renewals: true,
        ..QUIET
    },
];

/// How a world was reached: from which, by what.
#[derive(Clone, Copy)]
struct Origin {
    parent: u32,
    action: Action,
}

#[derive(Debug)]
struct Found {
    claim: &'static str,
    why: String,
    trace: Vec<Action>,
}

#[derive(Debug, Default)]
struct Explored {
    states: usize,
    steps: u64,
    depth: u32,
    /// Nothing new is reached by more actions.
    closed: bool,
    took: Duration,
    found: Vec<Found>,
}

/// Breadth first, so that the first trace to a violation is a shortest one. `wanted`: only that claim.
fn explore(scope: &Scope, machine: Machine, wanted: Option<&str>) -> Explored {
    let begun = Instant::now();
    let mut seen = HashSet::new();
    let mut origins: Vec<Origin> = Vec::new();
    let mut explored = Explored::default();
    let is_wanted = |claim: &str| wanted.is_none_or(|wanted| wanted == claim);
    seen.insert(normal::print(&World::new(), scope.clients));
    // Below every index of `origins`: the beginning.
    let mut level: Vec<u32> = vec![u32::MAX];
    while !level.is_empty() && explored.depth < scope.depth {
        let mut next = Vec::new();
        for from in level {
            let world = replay(&origins, from, machine);
            for action in actions(&world, scope) {
                explored.steps += 1;
                let (after, said) = world.step(action, machine);
                let step = Step {
                    before: &world,
                    after: &after,
                    said,
                };
                let mut broken = broken(&step, is_wanted);
                if broken.is_none() {
                    if !seen.insert(normal::print(&after, scope.clients)) {
                        continue;
                    }
                    if is_wanted("liveness") {
                        broken = stuck(&after, machine);
                    }
                }
                match broken {
                    Some((claim, why)) => {
                        if !explored.found.iter().any(|f| f.claim == claim) || wanted.is_some() {
                            let mut trace = trace(&origins, from);
                            trace.push(action);
                            explored.found.push(Found { claim, why, trace });
                        }
                        if wanted.is_some() || explored.found.len() >= FOUND_ENOUGH {
                            explored.took = begun.elapsed();
                            explored.states = seen.len();
                            return explored;
                        }
                    }
                    None => {
                        let at =
                            u32::try_from(origins.len()).expect("fewer than 2^32 worlds fit into memory");
                        origins.push(Origin { parent: from, action });
                        next.push(at);
                    }
                }
            }
        }
        explored.depth += 1;
        if std::env::var_os("RELATCH_EXPLORE").is_some() {
            println!(
                "  depth {}: {} states, {:.1?}",
                explored.depth,
                seen.len(),
                begun.elapsed()
            );
        }
        level = next;
    }
    explored.closed = level.is_empty();
    explored.states = seen.len();
    explored.took = begun.elapsed();
    explored
}

/// The first wanted claim that does not hold of a step.
fn broken(step: &Step<'_>, is_wanted: impl Fn(&str) -> bool) -> Option<(&'static str, String)> {
    CLAIMS
        .iter()
        .filter(|(claim, _)| is_wanted(claim))
        .find_map(|(claim, holds)| Some((*claim, holds(step).err()?)))
}

/// Whether somebody in this world can't come to an end.
fn stuck(world: &World, machine: Machine) -> Option<(&'static str, String)> {
    let verdict = if world.stale {
        Ok(())
    } else {
        liveness(world, machine)
    };
    verdict.err().map(|why| ("liveness", why))
}

const FOUND_ENOUGH: usize = 8;

fn trace(origins: &[Origin], mut at: u32) -> Vec<Action> {
    let mut trace = Vec::new();
    while let Some(origin) = origins.get(at as usize) {
        trace.push(origin.action);
        at = origin.parent;
    }
    trace.reverse();
    trace
}

/// Worlds are not kept: to take the way there again costs little, and memory is what runs out first.
fn replay(origins: &[Origin], at: u32, machine: Machine) -> World {
    trace(origins, at)
        .into_iter()
        .fold(World::new(), |world, action| world.step(action, machine).0)
}

/// A trace as one reads it: each action, and what was answered.
fn tell(found: &Found, machine: Machine) -> String {
    let mut text = format!("{}: {}\n", found.claim, found.why);
    let mut world = World::new();
    for action in &found.trace {
        let (after, said) = world.step(*action, machine);
        let _ = match said {
            Some(said) => writeln!(text, "  {action:?}\n    -> {:?} {:?}", said.reply, said.pushes),
            None => writeln!(text, "  {action:?}"),
        };
        world = after;
    }
    let _ = writeln!(text, "  {:?}", world.state.normal(world.now_ms * 1000));
    text
}

#[test]
fn every_course_of_events_within_the_scopes_keeps_every_claim() {
    let asked = std::env::var("RELATCH_EXPLORE").ok();
    let mut text = String::new();
    let mut found = 0;
    let known = |asked: &str| {
        asked == "all" || asked.parse::<u32>().is_ok() || SCOPES.iter().any(|s| s.name == asked)
    };
    assert!(
        asked.as_deref().is_none_or(known),
        "RELATCH_EXPLORE is a depth, \"all\" or the name of a scope, not {asked:?}"
    );
    for scope in SCOPES {
        let mut scope = *scope;
        match asked.as_deref() {
            None => scope.depth = scope.slice,
            Some("all") => {}
            Some(asked) => match asked.parse() {
                Ok(depth) => scope.depth = depth,
                Err(_) if asked == scope.name => {}
                Err(_) => continue,
            },
        }
        println!("{scope:?}");
        let explored = explore(&scope, LockState::apply, None);
        println!(
            "{}: {} distinct states, {} steps, to depth {}{}, in {:.1?}",
            scope.name,
            explored.states,
            explored.steps,
            explored.depth,
            if explored.closed { " (all there is)" } else { "" },
            explored.took
        );
        assert!(explored.states > 1, "nothing happens in this scope");
        for broken in &explored.found {
            found += 1;
            let _ = writeln!(text, "in {}: {}", scope.name, tell(broken, LockState::apply));
        }
    }
    assert!(
        found == 0,
        "{found} violations, each with a shortest trace:\n{text}"
    );
}
