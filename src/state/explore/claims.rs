//! What must hold of every world, and of every step between two. Each claim says what is broken, in words.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Band, Waiter, depth as depth_of, due, reenters, strongest};
use super::ghost::{
    Action, LEASE_MS, Machine, Past, Said, Standing, Step, TUNING, Why, World, withdrawn_from, write_phases,
};
use crate::protocol::{
    Acquire, Acquired, Downgraded, Ending, Grant, Mode, Operation, OwnerId, Polled, Push, Released, Renewed,
    Reply,
};

pub(super) type Verdict = Result<(), String>;
pub(super) type Claim = (&'static str, fn(&Step<'_>) -> Verdict);

/// Of every step. The first that fails is reported, so the more telling ones come first.
pub(super) const CLAIMS: &[Claim] = &[
    ("exclusion", exclusion),
    ("withdrawn", withdrawn),
    ("once", once),
    ("revoked", revoked),
    ("depth", depth),
    ("indexes", indexes),
    ("told", told),
    ("reentry", reentry),
    ("refusal", refusal),
    ("deserved", deserved),
    ("readers_bound", readers_bound),
    ("writers_bound", writers_bound),
    ("fences", fences),
    ("place", place),
    ("nobody_left_out", nobody_left_out),
];

macro_rules! ensure {
    ($ok:expr, $($why:tt)+) => {
        if !$ok {
            return Err(format!($($why)+));
        }
    };
}

/// 1: Write excludes everybody else; at most one owner holds upgradable or write.
pub(super) fn exclusion(step: &Step<'_>) -> Verdict {
    if step.said.is_none() {
        return Ok(());
    }
    let holds: Vec<(OwnerId, Option<Mode>)> = step
        .after
        .state
        .holds
        .iter()
        .map(|(owner, hold)| (*owner, strongest(hold)))
        .collect();
    for (owner, mode) in &holds {
        ensure!(
            *mode != Some(Mode::Write) || holds.len() == 1,
            "owner {owner:?} writes while {} others hold",
            holds.len() - 1
        );
    }
    let tops = holds.iter().filter(|(_, mode)| *mode > Some(Mode::Read)).count();
    ensure!(tops <= 1, "{tops} owners hold upgradable or write");
    Ok(())
}

/// 2: An owner holds what it was granted and has not given back, request by request, in its mode, until its deadline.
pub(super) fn depth(step: &Step<'_>) -> Verdict {
    if step.said.is_none() {
        return Ok(());
    }
    let World { pasts, state, .. } = step.after;
    let mut owners: BTreeSet<OwnerId> = pasts.iter().map(|p| p.owner).collect();
    owners.extend(state.holds.keys());
    for owner in owners {
        let no_hold = Vec::new();
        let hold = state.holds.get(&owner).unwrap_or(&no_hold);
        for mode in [Mode::Read, Mode::Upgradable, Mode::Write] {
            let must = pasts
                .iter()
                .filter(|p| p.owner == owner && p.is_held() && p.mode == mode)
                .count() as u64;
            let is = depth_of(hold, mode);
            ensure!(
                is == must,
                "owner {owner:?} holds {mode} {is} times, but was granted and has not given back {must}"
            );
        }
        for p in pasts.iter().filter(|p| p.owner == owner && p.is_held()) {
            let Some(g) = hold.iter().find(|g| g.request == p.id) else {
                return Err(format!(
                    "{:?} was granted and has not ended, but is not held",
                    p.id
                ));
            };
            ensure!(
                (g.mode, g.deadline_ms, g.revoked) == (p.mode, p.deadline_ms, p.revoked),
                "{:?} is held in {}, for {} ms, revoked {}; by what it was told: {}, {}, {}",
                p.id,
                g.mode,
                g.deadline_ms.saturating_sub(step.after.now_ms),
                g.revoked,
                p.mode,
                p.deadline_ms.saturating_sub(step.after.now_ms),
                p.revoked
            );
        }
    }
    Ok(())
}

/// 3: What is derived is what it is derived from.
pub(super) fn indexes(step: &Step<'_>) -> Verdict {
    let state = &step.after.state;
    let mut readers = BTreeSet::new();
    let mut top = None;
    let mut seen = BTreeSet::new();
    for (owner, hold) in &state.holds {
        ensure!(!hold.is_empty(), "owner {owner:?} has an empty hold");
        for g in hold {
            ensure!(seen.insert(g.request), "{:?} is held twice", g.request);
        }
        match strongest(hold) {
            Some(Mode::Read) => {
                readers.insert((due(hold), *owner));
            }
            mode => top = mode.map(|mode| (mode, *owner, due(hold))),
        }
    }
    let is = state.top.map(|top| (top.mode, top.owner, top.due_ms));
    ensure!(is == top, "top is {is:?}; by the holds it is {top:?}");
    ensure!(
        state.readers == readers,
        "readers are {:?}; by the holds they are {readers:?}",
        state.readers
    );
    let mut queue = BTreeMap::new();
    let mut waiting_of: BTreeMap<OwnerId, BTreeSet<_>> = BTreeMap::new();
    for (request, w) in &state.waiters {
        ensure!(seen.insert(*request), "{request:?} waits and is held");
        queue.insert((w.band, w.ticket, *request), w.owner);
        waiting_of.entry(w.owner).or_default().insert(*request);
        let held = state.holds.get(&w.owner).and_then(strongest);
        let band = match (w.mode, held) {
            (Mode::Write, Some(Mode::Upgradable)) => Band::Upgrade,
            (Mode::Write, _) => Band::Write,
            (Mode::Upgradable, _) => Band::Upgradable,
            (Mode::Read, _) => Band::Read,
        };
        // One that upgrades what has ended is dropped when it is met.
        let met = w
            .upgrade_of
            .is_none_or(|from| state.granted(w.owner, from).is_some_and(|g| !g.revoked));
        ensure!(
            w.band == band || !met || step.said.is_none(),
            "{request:?} for {} of an owner that holds {held:?} waits in band {:?}, not {band:?}",
            w.mode,
            w.band
        );
        ensure!(
            w.ticket <= state.last_ticket,
            "{request:?} has a ticket above the last one"
        );
    }
    ensure!(
        state.queue == queue,
        "the queue is {:?}; by the waiters it is {queue:?}",
        state.queue
    );
    let turns: BTreeMap<_, BTreeSet<_>> = state
        .waiting_of
        .iter()
        .map(|(owner, of)| (*owner, of.iter().copied().collect()))
        .collect();
    ensure!(
        turns == waiting_of,
        "waiting_of is {turns:?}; by the waiters it is {waiting_of:?}"
    );
    let once = state.waiting_of.values().map(Vec::len).sum::<usize>() == state.waiters.len();
    ensure!(once, "waiting_of names a request twice");
    let by_end: BTreeSet<_> = state
        .marks
        .iter()
        .map(|(request, (_, until))| (*until, *request))
        .collect();
    ensure!(
        state.marks_by_end == by_end,
        "marks_by_end is not the marks by their ends"
    );
    let free = state.holds.is_empty() && !state.queue.is_empty() && step.said.is_some();
    ensure!(!free, "the lock is free and somebody waits");
    Ok(())
}

/// 4: Nobody waits for what it may re-enter.
pub(super) fn reentry(step: &Step<'_>) -> Verdict {
    let state = &step.after.state;
    for (request, w) in &state.waiters {
        let held = state.holds.get(&w.owner).and_then(strongest);
        ensure!(
            !held.is_some_and(|held| reenters(held, w.mode)),
            "{request:?} waits for {} while its owner holds {held:?}",
            w.mode
        );
        let head = held != Some(Mode::Upgradable) || w.mode != Mode::Write || w.band == Band::Upgrade;
        ensure!(
            head || step.said.is_none(),
            "{request:?} for write is not at the head, while its owner holds upgradable"
        );
    }
    if let Some(Said {
        operation: Operation::Acquire(op),
        reply: Reply::Acquire(reply),
        ..
    }) = &step.said
    {
        let held = step.before.held(op.owner).filter(|_| !step.before.stale);
        let waits = matches!(
            reply,
            Acquired::Queued { .. } | Acquired::Busy | Acquired::Refused
        );
        ensure!(
            !(waits && held.is_some_and(|held| reenters(held, op.mode))),
            "an owner that holds {held:?} asked for {}, and was told {reply:?}",
            op.mode
        );
    }
    Ok(())
}

/// 5a: A reader that waits, hears and polls is let in when the first write phase ends after it got in line; no more
/// than one begins before that.
pub(super) fn readers_bound(step: &Step<'_>) -> Verdict {
    let (ended, began) = write_phases(step.before, step.after);
    for p in step
        .after
        .pasts
        .iter()
        .filter(|p| p.is_waiting() && p.faithful && p.asked == Mode::Read)
    {
        if !step
            .before
            .past(p.id)
            .is_some_and(|p| p.is_waiting() && p.faithful)
        {
            continue;
        }
        // One whose owner waits for more enters with that.
        if step.before.waits_for_more(p.owner) {
            continue;
        }
        ensure!(
            ended.is_none(),
            "a write phase ended and {:?}, a reader in line, was not let in",
            p.id
        );
        ensure!(
            p.phases <= 1 || began.is_none(),
            "{} write phases began while {:?}, a reader, was in line",
            p.phases,
            p.id
        );
    }
    Ok(())
}

/// 5b: Nobody that asked later and held nothing passes a write or upgradable request that waits, hears and polls; but
/// readers in line pass it together when a write phase ends, and readers pass one that waits for upgradable.
/// So a writer waits for those ahead of it in line and one reader phase between any two write phases.
pub(super) fn writers_bound(step: &Step<'_>) -> Verdict {
    let (ended, _) = write_phases(step.before, step.after);
    let after = step.after;
    let waits = |p: &&Past| p.is_waiting() && p.faithful && p.asked != Mode::Read;
    for p in after.pasts.iter().filter(waits) {
        let Some(was) = step.before.past(p.id).filter(waits) else {
            continue;
        };
        let entered: Vec<&Past> = after
            .pasts
            .iter()
            .filter(|q| {
                q.owner != p.owner && q.is_held() && !step.before.past(q.id).is_some_and(Past::is_held)
            })
            .filter(|q| {
                // Who held goes on holding, in whatever mode.
                !step
                    .before
                    .pasts
                    .iter()
                    .any(|h| h.owner == q.owner && h.is_held() && h.deadline_ms > after.now_ms)
            })
            .collect();
        // Who lost its place in line and asks for it again has it.
        let again = |q: &Past| match &step.said {
            Some(Said {
                operation: Operation::Acquire(op),
                ..
            }) if op.request == q.id && op.ticket > 0 => Some(op.ticket),
            _ => None,
        };
        let place = |q: &Past| {
            let waited = step.before.past(q.id).filter(|q| q.is_waiting());
            waited.map(|q| q.ticket).or_else(|| again(q))
        };
        let fair = |q: &Past| {
            place(q).is_some_and(|ticket| ticket < was.ticket)
                || (q.mode == Mode::Read
                    && (p.asked == Mode::Upgradable || (ended.is_some() && place(q).is_some())))
        };
        for q in &entered {
            // It entered with one of its owner's that was granted to a deaf client and taken back. Left out: that is not
            // worth putting it back in line.
            let with_deaf = |r: &Past| r.owner == q.owner && r.is_waiting() && after.is_deaf(r.id.client);
            if step.before.pasts.iter().any(with_deaf) {
                continue;
            }
            // Who has entered holds: it re-enters, writes before others when it holds upgradable, and asks for more as one that
            // holds.
            let holds_for = |r: &Past| r.mode >= q.mode || r.mode == Mode::Upgradable || place(q).is_none();
            let with = entered
                .iter()
                .any(|r| r.owner == q.owner && r.id != q.id && holds_for(r) && fair(r));
            ensure!(
                fair(q) || with,
                "{:?} for {} entered past {:?} for {}, which asked before",
                q.id,
                q.asked,
                p.id,
                p.asked
            );
        }
    }
    Ok(())
}

/// 6: Every new write hold has a fence above all that were ever told; whatever else is granted has the last.
pub(super) fn fences(step: &Step<'_>) -> Verdict {
    let Some(said) = &step.said else { return Ok(()) };
    let (before, after) = (step.before, step.after);
    ensure!(
        after.state.fence >= before.state.fence,
        "the fence went back from {} to {}",
        before.state.fence,
        after.state.fence
    );
    let mut grants = Vec::new();
    if let Reply::Acquire(Acquired::Granted(grant)) = &said.reply
        && let Operation::Acquire(op) = &said.operation
    {
        grants.push((op.request, *grant));
    }
    for (_, push) in &said.pushes {
        if let Push::Granted { grants: pushed, .. } = push {
            grants.extend(pushed.iter().copied());
        }
    }
    let mut begun: Option<(OwnerId, u64)> = None;
    for (request, grant) in grants {
        let Some(p) = after.past(request) else { continue };
        if before.past(request).is_some_and(Past::is_held) {
            continue;
        }
        // Who enters as a reader and then writes, in one step, had two last fences.
        let last = before.state.fence..=after.state.fence;
        ensure!(
            last.contains(&grant.fence),
            "{request:?} was granted with {}, not the last fence",
            grant.fence
        );
        let wrote = before.pasts.iter().any(|h| {
            h.owner == p.owner && h.is_held() && h.mode == Mode::Write && h.deadline_ms > after.now_ms
        });
        if p.asked == Mode::Write && !wrote {
            ensure!(
                grant.fence > before.fence,
                "a new write hold got fence {}, and {} was told before",
                grant.fence,
                before.fence
            );
            // What enters together writes in one phase.
            let (owner, fence) = *begun.get_or_insert((p.owner, grant.fence));
            ensure!(
                owner != p.owner || fence == grant.fence,
                "one write phase got the fences {fence} and {}",
                grant.fence
            );
        } else {
            ensure!(
                grant.fence >= before.fence,
                "{request:?} got fence {}, and {} was told before",
                grant.fence,
                before.fence
            );
            ensure!(
                !wrote || grant.fence == before.state.fence,
                "{request:?} for an owner that writes got fence {}, not {}",
                grant.fence,
                before.state.fence
            );
        }
    }
    Ok(())
}

/// Whoever hears and polls keeps its place in line until it is granted or leaves.
pub(super) fn place(step: &Step<'_>) -> Verdict {
    let after = step.after;
    for p in after.pasts.iter().filter(|p| p.is_waiting()) {
        let Some(w) = after.state.waiters.get(&p.id) else {
            return Err(format!("{:?} hears and polls, and lost its place in line", p.id));
        };
        ensure!(
            w.until_ms == p.sign_ms && w.ticket == p.ticket,
            "{:?} was told place {} until {}, and has {} until {}",
            p.id,
            p.ticket,
            p.sign_ms,
            w.ticket,
            w.until_ms
        );
    }
    for request in after.state.waiters.keys() {
        let waits = after
            .past(*request)
            .is_some_and(|p| matches!(p.standing, Standing::Waiting));
        ensure!(waits, "{request:?} is in line, and nobody waits for it");
    }
    Ok(())
}

/// 7: After every step nobody that is alive in line could enter.
pub(super) fn nobody_left_out(step: &Step<'_>) -> Verdict {
    if step.said.is_none() {
        return Ok(());
    }
    let World { state, now_ms, .. } = step.after;
    let live: Vec<_> = state
        .waiters
        .iter()
        .filter(|(_, w)| {
            w.until_ms > *now_ms
                && w.upgrade_of
                    .is_none_or(|from| state.granted(w.owner, from).is_some_and(|g| !g.revoked))
        })
        .collect();
    let holds = |owner: &OwnerId| state.holds.get(owner).and_then(strongest);
    for (request, w) in &live {
        let others: Vec<Mode> = state
            .holds
            .iter()
            .filter(|(owner, _)| **owner != w.owner)
            .filter_map(|(_, hold)| strongest(hold))
            .collect();
        let upgrades = live
            .iter()
            .any(|(_, q)| q.mode == Mode::Write && holds(&q.owner) == Some(Mode::Upgradable));
        let ahead = |mode: Mode| live.iter().any(|(_, q)| q.mode == mode && q.ticket < w.ticket);
        let enters = match w.mode {
            Mode::Write => {
                let first = !upgrades && !ahead(Mode::Write) && !ahead(Mode::Upgradable);
                others.is_empty() && (first || holds(&w.owner) == Some(Mode::Upgradable))
            }
            Mode::Upgradable => {
                others.iter().all(|mode| *mode == Mode::Read)
                    && !upgrades
                    && !ahead(Mode::Write)
                    && !ahead(Mode::Upgradable)
            }
            Mode::Read => {
                let more = |q: &Waiter| q.mode == Mode::Write || (q.owner == w.owner && q.mode > Mode::Read);
                !others.contains(&Mode::Write) && !live.iter().any(|(_, q)| more(q))
            }
        };
        ensure!(
            !enters,
            "{request:?} waits for {}, and could enter: others hold {others:?}",
            w.mode
        );
    }
    Ok(())
}

/// 8: What has ended is not granted or put in line by a late copy, while copies may be under way. Left out: a
/// release without a mark, which says that there are none.
pub(super) fn once(step: &Step<'_>) -> Verdict {
    again(step, |why| why != Why::Withdrawn)
}

/// 9: What was withdrawn neither holds nor waits.
pub(super) fn withdrawn(step: &Step<'_>) -> Verdict {
    again(step, |why| why == Why::Withdrawn)
}

fn again(step: &Step<'_>, which: fn(Why) -> bool) -> Verdict {
    if step.said.is_none() {
        return Ok(());
    }
    for p in &step.after.pasts {
        let ended = match p.standing {
            Standing::Over(why) => which(why) && p.marked,
            Standing::Replaced(_) => which(Why::Released) && p.quiet_ms > step.after.now_ms,
            _ => false,
        };
        let held = step.after.state.granted(p.owner, p.id).is_some();
        let waits = step.after.state.waiters.contains_key(&p.id);
        ensure!(
            !(ended && held),
            "{:?} is over ({:?}), and is held",
            p.id,
            p.standing
        );
        ensure!(
            !(ended && waits),
            "{:?} is over ({:?}), and waits",
            p.id,
            p.standing
        );
    }
    Ok(())
}

/// 10: An owner that only reads is not in line for more: it would wait for itself, or two would for each other.
pub(super) fn refusal(step: &Step<'_>) -> Verdict {
    let Some(said) = &step.said else { return Ok(()) };
    let (before, after) = (step.before, step.after);
    for w in after
        .pasts
        .iter()
        .filter(|w| w.is_waiting() && w.asked > Mode::Read)
    {
        ensure!(
            after.held(w.owner) != Some(Mode::Read),
            "{:?} waits for {} while its owner only reads",
            w.id,
            w.asked
        );
    }
    let (Operation::Acquire(op), Reply::Acquire(reply)) = (&said.operation, &said.reply) else {
        return Ok(());
    };
    let in_line = before.past(op.request).is_some_and(Past::is_waiting);
    let held = after.held(op.owner);
    let self_wait = held == Some(Mode::Read) && op.mode > Mode::Read && !in_line;
    ensure!(
        !(self_wait && matches!(reply, Acquired::Queued { .. })),
        "an owner that reads was put in line for {}",
        op.mode
    );
    Ok(())
}

/// Who is told to wait, `Busy`, `Refused` or that its request has ended could not have entered; `Refused` is who holds and would wait for
/// itself, `Busy` who does not wait. What was decided then changed nothing, so the world after it is the one in which it was decided.
pub(super) fn deserved(step: &Step<'_>) -> Verdict {
    let Some(Said {
        operation: Operation::Acquire(op),
        reply: Reply::Acquire(reply),
        ..
    }) = &step.said
    else {
        return Ok(());
    };
    let (before, after) = (step.before, step.after);
    let was = before.past(op.request).map(|p| p.standing);
    let is = after.past(op.request).map(|p| p.standing);
    let from = op.upgrade_of.map(|from| after.past(from));
    let upgrades = from.is_none_or(|from| from.is_some_and(|from| from.is_held() && !from.revoked));
    let held = after.held(op.owner);
    // One that holds waits for nothing but for the readers to leave that upgradable lets in.
    let may_wait = held.is_none() || (held == Some(Mode::Upgradable) && op.mode == Mode::Write);
    match reply {
        Acquired::Granted(_) => return Ok(()),
        Acquired::Ended(ending) => {
            let over = |standing| matches!(standing, Some(Standing::Over(_) | Standing::Replaced(_)));
            let marked = before.past(op.request).is_some_and(|p| p.marked);
            let over = over(was) || over(is) || marked;
            ensure!(
                over || !upgrades,
                "nothing of {:?} has ended, and it was told {ending:?}",
                op.request
            );
            return Ok(());
        }
        // A copy of one that is in line decides nothing.
        Acquired::Queued { .. } if was == Some(Standing::Waiting) => return Ok(()),
        Acquired::Queued { .. } => ensure!(op.wait, "{:?} does not wait, and was put in line", op.request),
        Acquired::Busy => ensure!(!op.wait, "{:?} waits, and was told that it is busy", op.request),
        Acquired::Refused => ensure!(
            op.wait && !may_wait,
            "an owner that holds {held:?} may wait for {}, and was refused",
            op.mode
        ),
    }
    ensure!(
        upgrades,
        "what {:?} would upgrade is gone, and it was told {reply:?}",
        op.request
    );
    ensure!(
        !may_enter(after, op),
        "an owner that holds {held:?} could have {}, and was told {reply:?}",
        op.mode
    );
    Ok(())
}

/// The table of what a request meets: may it enter at once?
fn may_enter(world: &World, op: &Acquire) -> bool {
    let held = world.held(op.owner);
    if held.is_some_and(|held| op.mode <= held) {
        return true;
    }
    let others = world
        .pasts
        .iter()
        .filter(|p| p.owner != op.owner && p.is_held())
        .map(|p| p.mode)
        .max();
    let mut line = world
        .pasts
        .iter()
        .filter(|p| p.id != op.request && world.is_alive(p));
    match op.mode {
        // Behind every writer; and what its owner waits for comes first.
        Mode::Read => {
            others < Some(Mode::Write)
                && line.all(|w| w.asked != Mode::Write && (w.owner != op.owner || w.asked == Mode::Read))
        }
        // Beside readers, behind whoever came before and waits for more. An owner that reads stands in nobody's line.
        Mode::Upgradable => {
            let ahead = |w: &Past| {
                let upgrade = w.asked == Mode::Write && world.held(w.owner) == Some(Mode::Upgradable);
                w.asked > Mode::Read && (upgrade || op.ticket == 0 || w.ticket <= op.ticket)
            };
            others <= Some(Mode::Read) && (held.is_some() || !line.any(ahead))
        }
        Mode::Write => others.is_none(),
    }
}

/// What was revoked is given back or lapses; no renewal and no upgrade makes it whole.
pub(super) fn revoked(step: &Step<'_>) -> Verdict {
    if step.said.is_none() {
        return Ok(());
    }
    for p in step.before.pasts.iter().filter(|p| p.is_held() && p.revoked) {
        let Some(now) = step.after.past(p.id) else {
            continue;
        };
        ensure!(
            !matches!(now.standing, Standing::Replaced(_)),
            "{:?} was revoked, and an upgrade made it whole",
            p.id
        );
        ensure!(
            !now.is_held() || now.deadline_ms == p.deadline_ms,
            "{:?} was revoked, and renewed",
            p.id
        );
    }
    Ok(())
}

/// A reply says what is so.
pub(super) fn told(step: &Step<'_>) -> Verdict {
    let Some(said) = &step.said else { return Ok(()) };
    let after = step.after;
    let now_ms = after.now_ms;
    let held_before = |p: &Past| p.is_held() && p.deadline_ms > now_ms;
    match (&said.operation, &said.reply) {
        (Operation::Acquire(op), Reply::Acquire(reply)) => {
            let Some(p) = after.past(op.request) else {
                return Ok(());
            };
            let fits = match reply {
                Acquired::Granted(grant) => p.is_held() && grant.deadline_ms == p.deadline_ms,
                Acquired::Queued { ticket, .. } => p.is_waiting() && p.ticket == *ticket,
                Acquired::Ended(ending) => match p.standing {
                    Standing::Over(why) => {
                        // Where the first mark is lost a late copy of a release leaves another.
                        let remarked = after.lost && p.release_sent == Some(true);
                        let withdrawn = (p.withdraw_sent || remarked) && *ending == Ending::Withdrawn;
                        *ending == ending_of(why, p) || withdrawn || !p.marked
                    }
                    Standing::Held | Standing::Waiting => false,
                    _ => true,
                },
                Acquired::Busy | Acquired::Refused => !p.is_held() && !p.is_waiting(),
            };
            ensure!(fits, "it was told {reply:?}, and is {:?}", p.standing);
            match reply {
                Acquired::Granted(grant) => {
                    has(after, p, grant, after.state.fence)?;
                    ensure!(
                        grant.deadline_ms <= now_ms + LEASE_MS.max(TUNING.claim_ms),
                        "it was granted for longer than a lease"
                    );
                }
                Acquired::Queued { wake_ms, .. } => wakes(after, p, *wake_ms)?,
                _ => {}
            }
        }
        (Operation::Release(op), Reply::Release(reply)) => {
            let quiet = step.before.is_quiet(&said.operation);
            let held = step
                .before
                .past(op.request)
                .is_some_and(|p| held_before(p) || (quiet && p.is_held()));
            let fits = match reply {
                Released::Released => held || op.again,
                Released::NotHeld(_) => !held,
            };
            ensure!(fits, "a release of what was held: {held}; it was told {reply:?}");
        }
        (Operation::Downgrade(op), Reply::Downgrade(reply)) => {
            let held = step
                .before
                .past(op.request)
                .is_some_and(|p| held_before(p) && !p.revoked);
            ensure!(
                held == matches!(reply, Downgraded::Downgraded(_)),
                "held and not revoked: {held}; it was told {reply:?}"
            );
            // An upgrade may have taken its place since.
            if let Downgraded::Downgraded(grant) = reply
                && let Some(p) = after.past(op.request).filter(|p| p.is_held())
            {
                has(after, p, grant, step.before.state.fence)?;
            }
        }
        (Operation::Renew(ops), Reply::Renew(replies)) => {
            for (op, reply) in ops.iter().zip(replies) {
                let held = step
                    .before
                    .past(op.request)
                    .is_some_and(|p| held_before(p) && !p.revoked);
                ensure!(
                    held == matches!(reply, Renewed::Renewed { .. }),
                    "held and not revoked: {held}; it was told {reply:?}"
                );
                if let Renewed::Renewed { deadline_ms } = reply
                    && let Some(p) = after.past(op.request).filter(|p| p.is_held())
                {
                    ensure!(
                        *deadline_ms == p.deadline_ms,
                        "it was renewed until {}, and was told {deadline_ms}",
                        p.deadline_ms
                    );
                }
            }
        }
        (Operation::Withdraw(op), Reply::Withdraw(reply)) => {
            let Some(p) = step.before.past(op.request) else {
                return Ok(());
            };
            let lapsed = p.is_held() && p.deadline_ms <= now_ms;
            let was = withdrawn_from(p);
            // A lease of its owner's has run out, and it left the line in this very step.
            let left = p.is_waiting() && p.asked > Mode::Read && after.held(p.owner) == Some(Mode::Read);
            ensure!(
                reply.was == was || lapsed || left,
                "it was withdrawn from {was:?}, and was told {:?}",
                reply.was
            );
        }
        (Operation::Poll(members), Reply::Poll(replies)) => {
            for (member, reply) in members.iter().zip(replies) {
                let Some(p) = after.past(member.request) else {
                    continue;
                };
                let fits = match reply {
                    Polled::Granted(grant) => p.is_held() && grant.deadline_ms == p.deadline_ms,
                    Polled::Queued { .. } => p.is_waiting(),
                    Polled::NotHeld(_) => !p.is_held() && !p.is_waiting(),
                };
                ensure!(fits, "a poll was told {reply:?}, and it is {:?}", p.standing);
                match reply {
                    Polled::Granted(grant) => has(after, p, grant, after.state.fence)?,
                    Polled::Queued { wake_ms } => wakes(after, p, *wake_ms)?,
                    Polled::NotHeld(_) => {}
                }
            }
        }
        (Operation::Revoke(op), Reply::Revoke(reply)) => {
            let revoked =
                |p: &&Past| p.is_held() && p.revoked && op.owner.is_none_or(|owner| p.owner == owner);
            let revoked = || after.pasts.iter().filter(revoked);
            let (count, until) = (revoked().count() as u64, revoked().map(|p| p.deadline_ms).max());
            ensure!(
                (reply.requests, reply.deadline_ms) == (count, until.unwrap_or(0)),
                "{count} are being taken away, until {until:?}, and it was told {reply:?}"
            );
        }
        _ => {}
    }
    for (client, push) in &said.pushes {
        if let Push::Granted { grants, .. } = push {
            ensure!(
                !after.is_deaf(*client),
                "a deaf client was granted something by a push"
            );
            for (request, grant) in grants {
                let held = after.past(*request).filter(|p| p.is_held());
                let Some(p) = held else {
                    return Err(format!(
                        "{request:?} was told by a push that it is held, and it is not so"
                    ));
                };
                // What is asked for enters before the line is told, or after.
                let asked = |q: &&Past| match &said.operation {
                    Operation::Acquire(op) => {
                        q.id == op.request
                            && (q.owner, q.mode) == (p.owner, p.mode)
                            && q.is_held()
                            && !step.before.past(q.id).is_some_and(Past::is_held)
                    }
                    _ => false,
                };
                let later = after.pasts.iter().filter(asked).filter(|q| q.id != p.id).count() as u64;
                // What a deaf client of the same owner would have got was counted, and is taken back after.
                let taken = |q: &&Past| {
                    q.owner == p.owner
                        && q.asked == p.mode
                        && q.is_waiting()
                        && after.is_deaf(q.id.client)
                        && !after.past(q.id).is_some_and(Past::is_waiting)
                };
                let taken = step.before.pasts.iter().filter(taken).count() as u64;
                let told = (0..=later + taken).any(|more| {
                    let depth = (grant.depth + later).checked_sub(more);
                    depth.is_some_and(|depth| has(after, p, &Grant { depth, ..*grant }, grant.fence).is_ok())
                });
                if !told {
                    has(after, p, grant, grant.fence)?;
                }
            }
        }
    }
    Ok(())
}

/// A grant says until when, how deep, and with which fence.
fn has(world: &World, p: &Past, grant: &Grant, fence: u64) -> Verdict {
    let alike = |q: &&Past| q.owner == p.owner && q.is_held() && q.mode == p.mode;
    let must = Grant {
        fence,
        deadline_ms: p.deadline_ms,
        depth: world.pasts.iter().filter(alike).count() as u64,
    };
    ensure!(*grant == must, "{:?} was told {grant:?}, and has {must:?}", p.id);
    Ok(())
}

/// Whoever is first in line is told when the first lease that is in its way ends, and nobody else is.
fn wakes(world: &World, p: &Past, wake_ms: u64) -> Verdict {
    let band = |w: &Past| match (w.asked, world.held(w.owner)) {
        (Mode::Write, Some(Mode::Upgradable)) => 0,
        (Mode::Write, _) => 1,
        (Mode::Upgradable, _) => 2,
        (Mode::Read, _) => 3,
    };
    let line = world.pasts.iter().filter(|w| w.is_waiting());
    let first = line.min_by_key(|w| (band(w), w.ticket, w.id));
    let due = world.pasts.iter().filter(|h| h.is_held()).map(|h| h.deadline_ms);
    let must = match first {
        Some(first) if first.id == p.id => due.min().unwrap_or(u64::MAX),
        _ => 0,
    };
    ensure!(
        wake_ms == must,
        "{:?} was told to look again at {wake_ms}, not at {must}",
        p.id
    );
    Ok(())
}

fn ending_of(why: Why, p: &Past) -> Ending {
    match why {
        Why::Lapsed => Ending::Lapsed,
        Why::Revoked => Ending::Revoked,
        // A release that leaves a mark leaves this one.
        Why::Released | Why::Forgotten if p.marked => Ending::Withdrawn,
        Why::Withdrawn => Ending::Withdrawn,
        Why::Released | Why::Forgotten => Ending::Unknown,
    }
}

/// 11: If everybody hears, polls, and gives back what it gets, everybody gets in, and nothing is left. An owner keeps what it has until it
/// has all that it asked for, as one does that asks for it in the branches of a `join!`.
pub(super) fn liveness(world: &World, machine: Machine) -> Verdict {
    let mut world = world.clone();
    world.deaf = [false; 2];
    let mut want: BTreeSet<_> = world
        .pasts
        .iter()
        .filter(|p| p.is_waiting() && !world.is_doubtful(p))
        .map(|p| p.id)
        .collect();
    for _ in 0..3 * world.pasts.len() + 3 {
        for at in 0..world.pasts.len() {
            if world.pasts.get(at).is_some_and(Past::is_waiting) {
                world = world.step(Action::Poll { at: at as u8 }, machine).0;
            }
        }
        want.retain(|id| world.past(*id).is_some_and(Past::is_waiting));
        let content = |world: &World| {
            world.pasts.iter().position(|p| {
                p.is_held() && !world.pasts.iter().any(|w| w.owner == p.owner && w.is_waiting())
            })
        };
        while let Some(at) = content(&world) {
            let id = world.pasts[at].id;
            world = world
                .step(
                    Action::Release {
                        at: at as u8,
                        again: false,
                        mark: true,
                    },
                    machine,
                )
                .0;
            ensure!(
                !world.past(id).is_some_and(Past::is_held),
                "{id:?} can't be given back"
            );
            want.retain(|id| world.past(*id).is_some_and(Past::is_waiting));
        }
        if world.state.is_idle() {
            break;
        }
    }
    ensure!(want.is_empty(), "everybody gave back, and {want:?} never entered");
    ensure!(
        world.state.is_idle(),
        "everybody gave back, and something is left: {:?}",
        world.state
    );
    ensure!(
        world.state.top.is_none() && world.state.readers.is_empty() && world.state.waiters.is_empty(),
        "everybody gave back, and an index names somebody"
    );
    Ok(())
}
