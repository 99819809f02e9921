//! A check that can't fail says nothing. Each claim is put to a machine with one rule broken, and must find it out; the machine as it is must pass in
//! the same scope.

use std::collections::HashSet;

use super::actions::Scope;
use super::claims::CLAIMS;
use super::ghost::Machine;
use super::{ALL, QUIET, explore, tell};
use crate::protocol::{
    Acquired, Answer, ClientId, Downgraded, Ending, Mode, Operation, Push, Released, Renewed, Reply,
};
use crate::state::{Band, Context, LockState, Pushes, depth, reenters, strongest};

type Out = (Answer, Vec<(ClientId, Push)>);

const SMALL: Scope = Scope {
    name: "small",
    owners: 3,
    clients: 1,
    requests: 4,
    modes: ALL,
    depth: 4,
    ..QUIET
};
const TIMED: Scope = Scope {
    time: true,
    copies: true,
    owners: 1,
    requests: 1,
    ..SMALL
};
const RENEWED: Scope = Scope {
    time: true,
    renewals: true,
    revocation: true,
    owners: 2,
    requests: 2,
    ..SMALL
};

/// The claim, what the mutant does, the mutant, and where to look.
const MUTANTS: &[(&str, &str, Machine, Scope)] = &[
    (
        "exclusion",
        "a writer enters beside readers",
        enters_beside_readers,
        SMALL,
    ),
    (
        "depth",
        "a request that is sent twice counts twice",
        counts_copies,
        Scope {
            copies: true,
            ..SMALL
        },
    ),
    (
        "depth",
        "a release gives back all that its owner holds",
        releases_everything,
        SMALL,
    ),
    (
        "indexes",
        "a renewal leaves the index of deadlines as it was",
        renews_without_index,
        RENEWED,
    ),
    (
        "reentry",
        "a reader that holds gets in line behind a writer",
        reader_waits_behind_writer,
        SMALL,
    ),
    (
        "readers_bound",
        "a write phase ends and the next writer enters first",
        writers_first,
        SMALL,
    ),
    (
        "writers_bound",
        "new readers do not look at the line",
        readers_barge,
        SMALL,
    ),
    ("fences", "a fence stands still", fence_stands_still, SMALL),
    (
        "fences",
        "what enters together has the fence of those before",
        siblings_have_the_old_fence,
        Scope { owners: 2, ..SMALL },
    ),
    (
        "told",
        "a renewal tells the deadline of before",
        renewal_tells_the_old_deadline,
        RENEWED,
    ),
    (
        "told",
        "a downgrade tells the depth of before",
        downgrade_tells_the_old_depth,
        Scope {
            downgrades: true,
            ..SMALL
        },
    ),
    ("told", "a push counts nobody", push_counts_nobody, SMALL),
    (
        "told",
        "the first in line is told of no lease",
        wakes_never,
        SMALL,
    ),
    (
        "told",
        "a revocation forgets what was revoked before",
        revokes_anew,
        RENEWED,
    ),
    (
        "place",
        "a release takes the last of the line along",
        loses_a_waiter,
        SMALL,
    ),
    ("nobody_left_out", "a release wakes nobody", wakes_nobody, SMALL),
    ("once", "marks are forgotten", forgets_marks, TIMED),
    ("withdrawn", "marks are forgotten", forgets_marks, TIMED),
    (
        "withdrawn",
        "a withdrawal leaves the hold",
        withdrawal_leaves_hold,
        SMALL,
    ),
    (
        "refusal",
        "a reader gets in line for write",
        reader_waits_for_itself,
        SMALL,
    ),
    (
        "deserved",
        "whoever asks beside a holder and waits is refused",
        refuses_without_need,
        SMALL,
    ),
    (
        "deserved",
        "whoever asks beside a holder and does not wait is told that it is busy",
        busy_without_need,
        Scope { tries: true, ..SMALL },
    ),
    (
        "revoked",
        "a renewal makes a revoked hold whole",
        renewal_revives,
        RENEWED,
    ),
    (
        "told",
        "a downgrade is denied",
        downgrade_is_denied,
        Scope {
            downgrades: true,
            ..SMALL
        },
    ),
    (
        "told",
        "every release is a quiet one",
        releases_quietly,
        Scope {
            time: true,
            owners: 2,
            requests: 2,
            depth: 5,
            ..SMALL
        },
    ),
    (
        "told",
        "the deaf are granted",
        grants_the_deaf,
        Scope {
            deafness: true,
            ..SMALL
        },
    ),
    (
        "liveness",
        "nothing but a new request lets anybody in",
        nothing_advances,
        SMALL,
    ),
    (
        "refusal",
        "an owner that waits for upgradable is let in to read",
        reads_while_it_waits_for_more,
        Scope { owners: 2, ..SMALL },
    ),
];

#[test]
fn every_claim_finds_the_machine_that_breaks_it() {
    let named: HashSet<&str> = MUTANTS.iter().map(|(claim, ..)| *claim).collect();
    let claims: HashSet<&str> = CLAIMS
        .iter()
        .map(|(claim, _)| *claim)
        .chain(["liveness"])
        .collect();
    assert_eq!(
        named, claims,
        "claims without a mutant, or mutants without a claim"
    );
    for (claim, what, mutant, scope) in MUTANTS {
        let sound = explore(scope, LockState::apply, Some(claim));
        if let Some(found) = sound.found.first() {
            panic!("the machine itself: {}", tell(found, LockState::apply));
        }
        let broken = explore(scope, *mutant, Some(claim));
        let found = broken.found.first();
        let found = found.unwrap_or_else(|| panic!("{claim} did not find that {what} in {broken:?}"));
        println!(
            "{claim}: {what}: found after {} steps by {:?}: {}",
            broken.steps, found.trace, found.why
        );
    }
}

fn enters_beside_readers(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let Operation::Acquire(op) = operation else {
        return state.apply(operation, cx);
    };
    let hidden: Vec<_> = state
        .readers
        .iter()
        .copied()
        .filter(|(_, owner)| op.mode == Mode::Write && *owner != op.owner)
        .collect();
    let holds: Vec<_> = hidden
        .iter()
        .filter_map(|(_, owner)| state.holds.remove_entry(owner))
        .collect();
    state.readers.retain(|reader| !hidden.contains(reader));
    let out = state.apply(operation, cx);
    state.readers.extend(hidden);
    state.holds.extend(holds);
    out
}

fn counts_copies(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    if let Operation::Acquire(op) = operation
        && let Some(granted) = state.granted(op.owner, op.request).cloned()
        && let Some(hold) = state.holds.get_mut(&op.owner)
    {
        hold.push(granted);
    }
    state.apply(operation, cx)
}

fn releases_everything(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    if let Operation::Release(op) = operation {
        let held = state.holds.get(&op.owner).cloned().unwrap_or_default();
        for granted in held.iter().filter(|g| g.request != op.request) {
            state.drop_granted(op.owner, granted.request);
        }
    }
    state.apply(operation, cx)
}

fn renews_without_index(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let (top, readers) = (state.top, state.readers.clone());
    let out = state.apply(operation, cx);
    if matches!(operation, Operation::Renew(_)) {
        state.top = top;
        state.readers = readers;
    }
    out
}

fn queued(state: &mut LockState, operation: &Operation, band: Band, cx: &Context<'_>) -> Option<Out> {
    let Operation::Acquire(op) = operation else {
        return None;
    };
    if !op.wait || state.granted(op.owner, op.request).is_some() || state.waiters.contains_key(&op.request) {
        return None;
    }
    let ticket = state.enqueue(op, band, cx);
    let reply = Reply::Acquire(Acquired::Queued { ticket, wake_ms: 0 });
    Some((
        Answer {
            now_us: Some(cx.now_us),
            reply,
        },
        Vec::new(),
    ))
}

fn reader_waits_behind_writer(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    if let Operation::Acquire(op) = operation
        && op.mode == Mode::Read
        && state
            .holds
            .get(&op.owner)
            .and_then(strongest)
            .is_some_and(|held| reenters(held, op.mode))
        && state.live_writer(cx).is_some()
        && let Some(out) = queued(state, operation, Band::Read, cx)
    {
        return out;
    }
    state.apply(operation, cx)
}

fn reader_waits_for_itself(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    if let Operation::Acquire(op) = operation
        && op.mode == Mode::Write
        && state.holds.get(&op.owner).and_then(strongest) == Some(Mode::Read)
        && !state.alone(op.owner)
        && let Some(out) = queued(state, operation, Band::Write, cx)
    {
        return out;
    }
    state.apply(operation, cx)
}

fn refuses_without_need(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    denied(state, operation, cx, true, Acquired::Refused)
}

fn busy_without_need(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    denied(state, operation, cx, false, Acquired::Busy)
}

/// Lets in who comes first; who comes while somebody else holds is told `reply`.
fn denied(
    state: &mut LockState,
    operation: &Operation,
    cx: &Context<'_>,
    wait: bool,
    reply: Acquired,
) -> Out {
    if let Operation::Acquire(op) = operation
        && op.wait == wait
        && !state.alone(op.owner)
        && !state.holds.contains_key(&op.owner)
    {
        let answer = Answer {
            now_us: Some(cx.now_us),
            reply: Reply::Acquire(reply),
        };
        return (answer, Vec::new());
    }
    state.apply(operation, cx)
}

fn reads_while_it_waits_for_more(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let mut pushes = Pushes::default();
    if let Operation::Acquire(op) = operation
        && op.mode == Mode::Read
        && state.top.is_none_or(|top| top.mode != Mode::Write)
        && state.live_writer(cx).is_none()
        && state.waits_for_more(op.owner, cx)
    {
        // As if its owner did not wait.
        let waiting = state.waiting_of.remove(&op.owner);
        let reply = Reply::Acquire(state.acquire(op, false, cx, &mut pushes));
        state
            .waiting_of
            .extend(waiting.map(|waiting| (op.owner, waiting)));
        let answer = Answer {
            now_us: Some(cx.now_us),
            reply,
        };
        return (answer, pushes.into_messages(cx.now_us));
    }
    state.apply(operation, cx)
}

fn released(state: &mut LockState, operation: &Operation, cx: &Context<'_>, advances: bool) -> Option<Out> {
    let Operation::Release(op) = operation else {
        return None;
    };
    state.lapse(cx);
    state.granted(op.owner, op.request)?;
    state.drop_granted(op.owner, op.request);
    let mut pushes = Pushes::default();
    if advances {
        state.advance(false, cx, &mut pushes);
    }
    let reply = Reply::Release(Released::Released);
    Some((
        Answer {
            now_us: Some(cx.now_us),
            reply,
        },
        pushes.into_messages(cx.now_us),
    ))
}

fn releases_quietly(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let Operation::Release(op) = operation else {
        return state.apply(operation, cx);
    };
    let mut pushes = Pushes::default();
    let reply = Reply::Release(state.release(op, false, cx, &mut pushes));
    (Answer { now_us: None, reply }, pushes.into_messages(cx.now_us))
}

fn writers_first(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    released(state, operation, cx, true).unwrap_or_else(|| state.apply(operation, cx))
}

fn wakes_nobody(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    released(state, operation, cx, false).unwrap_or_else(|| state.apply(operation, cx))
}

fn nothing_advances(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let queue = match operation {
        Operation::Acquire(_) | Operation::Withdraw(_) => None,
        _ => Some(std::mem::take(&mut state.queue)),
    };
    let out = state.apply(operation, cx);
    state.queue.extend(queue.unwrap_or_default());
    out
}

fn readers_barge(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let barges = matches!(operation, Operation::Acquire(op) if op.mode == Mode::Read);
    let queue = if barges {
        std::mem::take(&mut state.queue)
    } else {
        Default::default()
    };
    let out = state.apply(operation, cx);
    state.queue.extend(queue);
    out
}

fn fence_stands_still(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let fence = state.fence;
    let mut out = state.apply(operation, cx);
    if fence > 0 {
        state.fence = fence;
        if let Reply::Acquire(Acquired::Granted(grant)) = &mut out.0.reply {
            grant.fence = fence;
        }
    }
    out
}

fn siblings_have_the_old_fence(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let fence = state.fence;
    let mut out = state.apply(operation, cx);
    for (_, push) in &mut out.1 {
        if let Push::Granted { grants, .. } = push
            && grants.len() > 1
        {
            for (_, grant) in grants {
                grant.fence = fence;
            }
        }
    }
    out
}

fn renewal_tells_the_old_deadline(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let before = state.clone();
    let mut out = state.apply(operation, cx);
    if let (Operation::Renew(ops), Reply::Renew(replies)) = (operation, &mut out.0.reply) {
        for (op, reply) in ops.iter().zip(replies) {
            if let Renewed::Renewed { deadline_ms } = reply
                && let Some(granted) = before.granted(op.owner, op.request)
            {
                *deadline_ms = granted.deadline_ms;
            }
        }
    }
    out
}

fn downgrade_tells_the_old_depth(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let before = state.clone();
    let mut out = state.apply(operation, cx);
    if let (Operation::Downgrade(op), Reply::Downgrade(Downgraded::Downgraded(grant))) =
        (operation, &mut out.0.reply)
    {
        grant.depth = before.holds.get(&op.owner).map_or(0, |hold| depth(hold, op.to));
    }
    out
}

fn push_counts_nobody(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let mut out = state.apply(operation, cx);
    for (_, push) in &mut out.1 {
        if let Push::Granted { grants, .. } = push {
            grants.iter_mut().for_each(|(_, grant)| grant.depth = 0);
        }
    }
    out
}

fn wakes_never(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let mut out = state.apply(operation, cx);
    if let Reply::Acquire(Acquired::Queued { wake_ms, .. }) = &mut out.0.reply {
        *wake_ms = 0;
    }
    out
}

fn revokes_anew(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let before = state.clone();
    let mut out = state.apply(operation, cx);
    if let Reply::Revoke(reply) = &mut out.0.reply {
        let were = before.holds.values().flatten().filter(|g| g.revoked).count();
        reply.requests = reply.requests.saturating_sub(were as u64);
    }
    out
}

fn loses_a_waiter(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let out = state.apply(operation, cx);
    if matches!(operation, Operation::Release(_))
        && let Some((_, _, last)) = state.queue.last_key_value().map(|(place, _)| *place)
    {
        state.leave(last);
    }
    out
}

fn forgets_marks(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let out = state.apply(operation, cx);
    state.marks.clear();
    state.marks_by_end.clear();
    out
}

fn withdrawal_leaves_hold(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let before = state.clone();
    let out = state.apply(operation, cx);
    if matches!(operation, Operation::Withdraw(_)) {
        *state = before;
    }
    out
}

fn renewal_revives(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    if let Operation::Renew(ops) = operation {
        for op in ops {
            for granted in state.holds.get_mut(&op.owner).into_iter().flatten() {
                granted.revoked = false;
            }
        }
    }
    state.apply(operation, cx)
}

fn downgrade_is_denied(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    let mut out = state.apply(operation, cx);
    if let Reply::Downgrade(reply) = &mut out.0.reply {
        *reply = Downgraded::NotHeld(Ending::Unknown);
    }
    out
}

fn grants_the_deaf(state: &mut LockState, operation: &Operation, cx: &Context<'_>) -> Out {
    state.apply(
        operation,
        &Context {
            heard: &|_| true,
            ..*cx
        },
    )
}
