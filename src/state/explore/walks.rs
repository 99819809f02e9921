//! Long random walks: what is too deep for going through everything. Each walk draws its actions from a seed, takes them under the same claims,
//! and has enough owners, requests and time for a lapse, a revocation and a phase to meet in one course of events.
//!
//! `cargo test --lib walks` takes some thousands. More, or the one of a seed:
//!
//! ```text
//! RELATCH_WALKS=200000 cargo test --release --lib walks -- --nocapture
//! RELATCH_WALK=4711    cargo test --release --lib walks -- --nocapture
//! ```

use std::collections::HashMap;
use std::time::Instant;

use super::actions::{Scope, actions};
use super::ghost::{Action, Machine, Step, World, owner_id};
use super::{Found, broken, stuck, tell};
use crate::protocol::{Answer, ClientId, Operation, Push};
use crate::state::{Context, LockState};

const WALKS: u64 = 2_000;
const ACTIONS: usize = 60;
const SEED: u64 = 1;

const WIDE: Scope = Scope {
    name: "walks",
    requests: 9,
    loss: true,
    ..super::EVERYTHING
};
/// What has ended stays for as long as copies of it may come. Where nobody is deaf and nothing comes twice, more of the room is for what lives.
const BRISK: Scope = Scope {
    copies: false,
    deafness: false,
    roam: false,
    loss: false,
    ..WIDE
};

/// How often a kind of action is taken, against the others that are possible. Most actions would otherwise be copies, and most of a
/// walk would be deaf.
fn weight(action: Action) -> u32 {
    match action {
        Action::Ask { wait: true, .. } => 10,
        Action::Release { again: false, .. } => 8,
        Action::Pass { .. } | Action::PollAll { .. } => 6,
        Action::Upgrade { .. } | Action::Renew { .. } => 4,
        Action::Downgrade { .. } | Action::AskAgain { place: true, .. } | Action::Ask { .. } => 3,
        Action::Poll { .. } | Action::Withdraw { .. } | Action::AskAgain { .. } => 2,
        Action::Release { .. } | Action::WithdrawFirst { .. } => 1,
        Action::Toggle { .. } | Action::Revoke { .. } | Action::Look | Action::Lose => 1,
    }
}

/// First the kind, by its weight, then one of that kind.
fn draw(rng: &mut fastrand::Rng, possible: &[Action]) -> Option<Action> {
    let mut kinds: Vec<(Action, u32)> = Vec::new();
    for action in possible {
        if !kinds.iter().any(|(kind, _)| is_alike(*kind, *action)) {
            kinds.push((*action, weight(*action)));
        }
    }
    let mut at = rng.u32(0..kinds.iter().map(|(_, weight)| weight).sum::<u32>().max(1));
    let (kind, _) = kinds.into_iter().find(|(_, weight)| {
        let here = at < *weight;
        at = at.saturating_sub(*weight);
        here
    })?;
    let alike: Vec<Action> = possible.iter().copied().filter(|a| is_alike(*a, kind)).collect();
    rng.choice(alike)
}

fn is_alike(one: Action, other: Action) -> bool {
    std::mem::discriminant(&one) == std::mem::discriminant(&other) && weight(one) == weight(other)
}

/// Takes one walk; the steps it took, and what it found.
fn walk(seed: u64, machine: Machine) -> (u64, Option<(Scope, Found)>) {
    let scope = if seed.is_multiple_of(2) { WIDE } else { BRISK };
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut world = World::new();
    let mut trace = Vec::new();
    while trace.len() < ACTIONS {
        let Some(action) = draw(&mut rng, &actions(&world, &scope)) else {
            break;
        };
        trace.push(action);
        match take(&world, action, machine) {
            Ok(after) => world = after,
            Err((claim, why)) => {
                let found = Found { claim, why, trace };
                return (found.trace.len() as u64, Some((scope, found)));
            }
        }
    }
    (trace.len() as u64, None)
}

fn take(world: &World, action: Action, machine: Machine) -> Result<World, (&'static str, String)> {
    let (after, said) = world.step(action, machine);
    let step = Step {
        before: world,
        after: &after,
        said,
    };
    match broken(&step, |_| true).or_else(|| stuck(&after, machine)) {
        Some(broken) => Err(broken),
        None => Ok(after),
    }
}

/// Leaves out what the fault does not need, and what is not possible without it, for as long as the same claim breaks.
fn shorten(found: Found, scope: &Scope, machine: Machine) -> Found {
    let mut tied = tie(&found.trace, machine);
    let mut shortest = found;
    let mut at = 0;
    while at < tied.len() {
        let mut fewer = tied.clone();
        fewer.remove(at);
        match replay(&fewer, scope, machine) {
            Some((taken, found)) if found.claim == shortest.claim => {
                (tied, shortest, at) = (taken, found, 0);
            }
            _ => at += 1,
        }
    }
    shortest
}

/// An action that goes on meaning the same request when others are left out.
#[derive(Clone, Copy)]
struct Tied {
    action: Action,
    /// Which action of the whole walk it is.
    place: usize,
    /// Which one asked for the request that it is about.
    asked: Option<usize>,
}

fn tie(trace: &[Action], machine: Machine) -> Vec<Tied> {
    let mut world = World::new();
    let mut places = HashMap::new();
    let mut tied = Vec::new();
    for (place, action) in trace.iter().copied().enumerate() {
        let of = action.about().and_then(|at| world.pasts.get(at as usize));
        let asked = of.and_then(|p| places.get(&p.id.number).copied());
        tied.push(Tied { action, place, asked });
        places.insert(world.next, place);
        world = world.step(action, machine).0;
    }
    tied
}

/// Takes what is possible of it. What was taken, and what that broke.
fn replay(tied: &[Tied], scope: &Scope, machine: Machine) -> Option<(Vec<Tied>, Found)> {
    let mut world = World::new();
    let mut numbers = HashMap::new();
    let (mut taken, mut trace) = (Vec::new(), Vec::new());
    for tied in tied {
        let Some(action) =
            untie(*tied, &world, &numbers).filter(|action| is_possible(*action, &world, scope))
        else {
            continue;
        };
        taken.push(*tied);
        trace.push(action);
        numbers.insert(tied.place, world.next);
        match take(&world, action, machine) {
            Ok(after) => world = after,
            Err((claim, why)) => return Some((taken, Found { claim, why, trace })),
        }
    }
    None
}

fn untie(tied: Tied, world: &World, numbers: &HashMap<usize, u64>) -> Option<Action> {
    let mut action = tied.action;
    if let Some(at) = action.about_mut() {
        let number = numbers.get(&tied.asked?)?;
        *at = world.pasts.iter().position(|p| p.id.number == *number)? as u8;
    }
    Some(action)
}

fn is_possible(action: Action, world: &World, scope: &Scope) -> bool {
    match action {
        Action::Pass { .. } => true,
        // Which of the owners that nothing is known of is all the same.
        Action::Ask { owner, .. } | Action::WithdrawFirst { owner, .. }
            if world.pasts.iter().all(|p| p.owner != owner_id(owner)) =>
        {
            world.pasts.len() < scope.requests
        }
        _ => actions(world, scope).contains(&action),
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")),
    )
}

#[test]
fn long_walks_keep_every_claim() {
    let begun = Instant::now();
    let seeds = match number("RELATCH_WALK") {
        Some(seed) => seed..seed + 1,
        None => SEED..SEED + number("RELATCH_WALKS").unwrap_or(WALKS),
    };
    let (mut walks, mut steps) = (0, 0);
    for seed in seeds {
        let (taken, found) = walk(seed, LockState::apply);
        walks += 1;
        steps += taken;
        if let Some((scope, found)) = found {
            let found = shorten(found, &scope, LockState::apply);
            panic!("RELATCH_WALK={seed}: {}", tell(&found, LockState::apply));
        }
    }
    println!("{walks} walks, {steps} steps, in {:.1?}", begun.elapsed());
}

#[test]
fn walks_find_what_lies_deep_and_cut_the_way_to_it() {
    let (scope, found) = (SEED..SEED + WALKS)
        .find_map(|seed| walk(seed, forgets_the_fourth).1)
        .expect("a walk meets a line of three");
    let long = found.trace.len();
    let short = shorten(found, &scope, forgets_the_fourth);
    println!("{long} actions, cut to {}: {}", short.trace.len(), short.why);
    // Who holds, and three that wait.
    assert!(short.trace.len() <= 4, "{}", tell(&short, forgets_the_fourth));
}

fn forgets_the_fourth(
    state: &mut LockState,
    operation: &Operation,
    cx: &Context<'_>,
) -> (Answer, Vec<(ClientId, Push)>) {
    let out = state.apply(operation, cx);
    if state.queue.len() > 2
        && let Some((_, _, last)) = state.queue.last_key_value().map(|(place, _)| *place)
    {
        state.leave(last);
    }
    out
}
