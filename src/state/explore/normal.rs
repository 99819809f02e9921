//! When two worlds are the same: equal up to what owners, clients and requests are called, when it all happens, and by how
//! much tickets and fences differ. Two such worlds have the same futures, so one of them is explored.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher as _};

use super::ghost::{LEASE_MS, Past, Standing, World};
use crate::protocol::{Mode, RequestId};

/// 128 bits of a normal form. Two worlds fall together wrongly with a chance of less than 10^-20 for 10^9 of them.
pub(super) type Print = (u64, u64);

pub(super) fn print(world: &World, clients: u8) -> Print {
    let mut form = form(world, false);
    if clients == 2 {
        form = form.min(self::form(world, true));
    }
    let hash = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(salt);
        hasher.write(&form);
        hasher.finish()
    };
    (hash(0), hash(1))
}

fn form(world: &World, swapped: bool) -> Vec<u8> {
    let state = &world.state;
    let deaf = if swapped {
        [world.deaf[1], world.deaf[0]]
    } else {
        world.deaf
    };
    // Only their order matters: a new ticket is above all of them.
    let mut tickets: BTreeSet<u64> = world.pasts.iter().map(|p| p.ticket).collect();
    tickets.insert(state.last_ticket);
    tickets.extend(state.waiters.values().map(|w| w.ticket));
    let rank = |ticket: u64| tickets.range(..ticket).count() as u8;

    let mut owners: Vec<Vec<u8>> = Vec::new();
    let names: BTreeSet<_> = world.pasts.iter().map(|p| p.owner).collect();
    for owner in names {
        let mut requests: Vec<(Vec<u8>, RequestId, Option<RequestId>)> = world
            .pasts
            .iter()
            .filter(|p| p.owner == owner)
            .map(|p| (one(world, p, swapped, rank), p.id, p.upgrade_of))
            .collect();
        requests.sort();
        let places: Vec<RequestId> = requests.iter().map(|(_, id, _)| *id).collect();
        let place = |id: RequestId| places.iter().position(|p| *p == id).map_or(254, |at| at as u8);
        let mut bytes = Vec::new();
        for (form, _, from) in &requests {
            bytes.extend_from_slice(form);
            bytes.push(from.map_or(255, place));
        }
        owners.push(bytes);
    }
    owners.sort();
    let mut form = vec![
        u8::from(deaf[0]) | u8::from(deaf[1]) << 1 | u8::from(world.lost) << 2 | u8::from(world.stale) << 3,
        u8::from(state.fence == 0) | u8::from(state.fence < world.fence) << 1,
        rank(state.last_ticket),
    ];
    for owner in owners {
        form.push(253);
        form.extend(owner);
    }
    form
}

fn one(world: &World, p: &Past, swapped: bool, rank: impl Fn(u64) -> u8) -> Vec<u8> {
    let now_ms = world.now_ms;
    let left = |ms: u64| ms.saturating_sub(now_ms).min(250) as u8;
    let client = if swapped { 3 - p.id.client.0 } else { p.id.client.0 } as u8;
    let mode = |mode: Mode| mode as u8;
    let mut form = vec![
        client,
        mode(p.asked),
        u8::from(p.wait)
            | u8::from(p.marked) << 1
            | u8::from(p.withdraw_sent) << 2
            | u8::from(p.upgrading) << 3
            | u8::from(p.revoked) << 4
            | u8::from(p.faithful) << 5
            | u8::from(p.renewed) << 6,
        p.release_sent.map_or(2, u8::from),
        p.downgrade_sent.map_or(9, mode),
    ];
    match p.standing {
        Standing::Waiting => form.extend([1, left(p.sign_ms), rank(p.ticket), p.phases]),
        Standing::Held => form.extend([
            2,
            mode(p.mode),
            left(p.deadline_ms),
            left(p.since_ms + LEASE_MS),
            u8::from(world.state.fence < p.fence),
        ]),
        Standing::Replaced(_) => form.extend([3, mode(p.mode), left(p.quiet_ms)]),
        Standing::Passed => form.extend([4, rank(p.ticket)]),
        Standing::Over(_) => form.extend([5, left(p.quiet_ms), u8::from(world.state.fence < p.fence)]),
    }
    // What the machine knows beyond what the ghost knows.
    if let Some(waiter) = world.state.waiters.get(&p.id) {
        let turn = world.state.waiting_of.get(&p.owner);
        let turn = turn.and_then(|of| of.iter().position(|id| *id == p.id));
        form.extend([
            waiter.band as u8,
            rank(waiter.ticket),
            left(waiter.until_ms),
            turn.map_or(9, |at| at as u8),
        ]);
    }
    if let Some((ending, until_ms)) = world.state.marks.get(&p.id)
        && *until_ms > now_ms
    {
        form.extend([*ending as u8 + 100, left(*until_ms)]);
    }
    form
}
