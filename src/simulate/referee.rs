//! What is promised, and whether it is kept. See `docs/guarantees.md` for the numbers.
//!
//! The referee sees every guard that a user's code has, and asks it what the code would: [`Held::end`] on the clock of its client, at
//! every step of the server, and at the very moment when a lease ends there. So it does not matter whether the client runs or is
//! stopped: what a guard would say if its process woke up now must be true now.
//!
//! - **G1** A guard that says it is held is held: the server has it, or its owner, and nobody else holds, *or would if anybody asked now*, in a
//!   mode that excludes it. Once it says no it never says yes again.
//! - **G2** When it says no, `lost()` is ready at the first poll, and whoever already waits for it is woken at once, unless stopped.
//! - **G3** Every new write hold has a greater fence than all before it; a store that checks fences accepts writes in the order of the grants.
//!
//! - **G6** Nothing is granted, and no guard made, that was not asked for.
//! - **G4** Only an owner that holds or waits is refused.
//!
//! The excuse, and no more: what a server that lost data no longer knows, or knows with a shorter lease, is not held to G1 until it has
//! been renewed there, nor for longer than the lease that was lost; a fence is not held to G3 when the server forgot the last one and
//! its clock shows a time before it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};

use crate::core::Core;
use crate::protocol::{
    Acquired, Answer, Call, ClientId, Grant, HeldRow, Mode, Name, Operation, OwnerId, Polled, Push, Reply,
    RequestId, Snapshot,
};
use crate::watchdog::Held;

use super::gate::Gate;

/// How late whoever waits for `lost()` may be told: two ticks of the runtime's timer, and the margin of a clock.
const PROMPTLY_MS: u64 = 10;

#[derive(Default)]
pub(super) struct Referee {
    pub(super) clients: BTreeMap<usize, ClientId>,
    guards: BTreeMap<u64, Guarded>,
    entered: u64,
    names: BTreeMap<Name, Seen>,
    /// Of every acquisition that was ever made.
    asked: BTreeMap<RequestId, (OwnerId, Mode, Option<RequestId>)>,
    /// Who was refused there.
    refused: BTreeSet<(Name, OwnerId)>,
    /// What the server has lost, and until when its client may still believe in it.
    excused: BTreeMap<RequestId, u64>,
    data_lost: bool,
    /// When it will look next at a name.
    looks: BTreeMap<Name, u64>,
    pub(super) wrong: Option<String>,
    pub(super) grants: u64,
    pub(super) stale_writes_refused: u64,
    pub(super) excuses: u64,
}

#[derive(Default)]
struct Seen {
    fence: u64,
    /// Whose write holds had which fence.
    writers: BTreeMap<u64, OwnerId>,
    /// Write holds, by their fences too, in the order of their grants: what was lost may be granted once more.
    order: BTreeMap<(RequestId, u64), u64>,
    granted: u64,
    /// Its key has expired.
    expired: bool,
    /// Fences fell back, and were excused.
    set_back: bool,
    store: (u64, u64),
}

/// A guard in a user's hands.
pub(super) struct Guarded {
    pub(super) who: String,
    pub(super) name: Name,
    pub(super) mode: Mode,
    pub(super) held: Arc<Held>,
    pub(super) core: Arc<Core>,
    pub(super) gate: Arc<Gate>,
    /// Somebody waits for `lost()`, and was told.
    pub(super) told: Arc<AtomicBool>,
    pub(super) ended_ms: Option<u64>,
}

impl Guarded {
    fn says_held(&self) -> bool {
        self.held.end(self.core.clock.now()).is_none()
    }

    fn request(&self) -> RequestId {
        self.held.member.request
    }

    fn owner(&self) -> OwnerId {
        self.held.member.owner
    }

    fn lost_is_ready(&self) -> bool {
        let lost = std::pin::pin!(self.held.lost(&self.core));
        lost.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }
}

fn excludes(a: Mode, b: Mode) -> bool {
    a == Mode::Write || b == Mode::Write || (a == Mode::Upgradable && b == Mode::Upgradable)
}

impl Referee {
    fn fault(&mut self, what: impl FnOnce() -> String) {
        if self.wrong.is_none() {
            self.wrong = Some(what());
        }
    }

    pub(super) fn enter(&mut self, guard: Guarded) -> u64 {
        self.entered += 1;
        self.guards.insert(self.entered, guard);
        self.entered
    }

    pub(super) fn leave(&mut self, guard: u64) {
        self.guards.remove(&guard);
    }

    /// Its process is gone.
    pub(super) fn gone(&mut self, client: usize) {
        self.guards.retain(|_, guard| guard.gate.client != client);
    }

    // -- at the server ------------------------------------------------------------------------------------------

    /// `before` is who held and waited there, without what had lapsed.
    pub(super) fn step(
        &mut self,
        call: &Call,
        answer: &Answer,
        pushes: &[(ClientId, Push)],
        before: &Snapshot,
        now_us: u64,
    ) {
        let holding = before.holding.iter();
        let mut writing: BTreeSet<OwnerId> = holding
            .filter(|row| row.mode == Mode::Write)
            .map(|row| row.owner)
            .collect();
        let writing = &mut writing;
        if let Operation::Acquire(op) = &call.operation {
            self.asked.insert(op.request, (op.owner, op.mode, op.upgrade_of));
        }
        // The step may first have let others in.
        for (_, push) in pushes {
            if let Push::Granted { grants, .. } = push {
                for (request, grant) in grants {
                    self.granted(&call.name, *request, *grant, writing, now_us);
                }
            }
        }
        match (&call.operation, &answer.reply) {
            (Operation::Acquire(op), Reply::Acquire(Acquired::Granted(grant))) => {
                self.granted(&call.name, op.request, *grant, writing, now_us);
            }
            (Operation::Acquire(op), Reply::Acquire(Acquired::Refused)) => {
                let holds = before.holding.iter().any(|row| row.owner == op.owner);
                let waits = before.waiting.iter().any(|row| row.owner == op.owner);
                if !holds && !waits {
                    self.fault(|| {
                        format!(
                            "G4 {}: {} was refused, and its owner neither holds nor waits",
                            call.name, op.request
                        )
                    });
                }
                self.refused.insert((call.name.clone(), op.owner));
            }
            (Operation::Poll(members), Reply::Poll(replies)) => {
                for (member, reply) in members.iter().zip(replies) {
                    if let Polled::Granted(grant) = reply {
                        self.granted(&call.name, member.request, *grant, writing, now_us);
                    }
                }
            }
            _ => {}
        }
    }

    pub(super) fn was_refused(&self, name: &Name, owner: OwnerId) -> bool {
        self.refused.contains(&(name.clone(), owner))
    }

    /// Who had this fence last?
    pub(super) fn wrote(&self, name: &Name, fence: u64) -> Option<OwnerId> {
        self.names.get(name)?.writers.get(&fence).copied()
    }

    pub(super) fn is_excused(&self, request: RequestId) -> bool {
        self.excused.contains_key(&request)
    }

    /// In the order in which the server grants. `writing` are the owners that write there by then.
    fn granted(
        &mut self,
        name: &Name,
        request: RequestId,
        grant: Grant,
        writing: &mut BTreeSet<OwnerId>,
        now_us: u64,
    ) {
        let Some(&(owner, mode, _)) = self.asked.get(&request) else {
            return self.fault(|| format!("G6 {name}: {request} was granted and never asked for"));
        };
        let seen = self.names.entry(name.clone()).or_default();
        let excused = (self.data_lost || seen.expired) && now_us <= seen.fence;
        if mode != Mode::Write {
            return;
        }
        if seen.order.contains_key(&(request, grant.fence)) {
            // A replica may grant it again after somebody else had that fence, which was excused.
            seen.writers.insert(grant.fence, owner);
            writing.insert(owner);
            return;
        }
        self.grants += 1;
        seen.granted += 1;
        // Who re-enters what a replica still knows writes as whoever it was then.
        let first = seen
            .order
            .iter()
            .find(|((_, fence), _)| *fence == grant.fence)
            .map(|(_, at)| *at);
        seen.order
            .insert((request, grant.fence), first.unwrap_or(seen.granted));
        let grows = grant.fence > seen.fence;
        // A replica may know a hold that has ended since: its owner re-enters that, with a fence that every store refuses.
        let reenters = !writing.insert(owner)
            && seen.writers.get(&grant.fence) == Some(&owner)
            && (grant.fence == seen.fence || self.data_lost);
        let last = seen.fence;
        seen.fence = seen.fence.max(grant.fence);
        if grows {
            seen.writers.insert(grant.fence, owner);
        }
        if !grows && !reenters {
            if excused {
                // From there they grow again.
                seen.set_back = true;
                seen.fence = grant.fence;
                seen.writers.insert(grant.fence, owner);
                self.excuses += 1;
            } else {
                self.fault(|| {
                    format!(
                        "G3 {name}: {request} was granted with the fence {} after {last}",
                        grant.fence
                    )
                });
            }
        }
    }

    /// Was this acquired before?
    pub(super) fn knows(&self, call: &Call) -> bool {
        matches!(&call.operation, Operation::Acquire(op) if self.asked.contains_key(&op.request))
    }

    pub(super) fn expired(&mut self, name: &Name) {
        self.names.entry(name.clone()).or_default().expired = true;
    }

    /// Something writes what the name guards, with a fence. Tells whether it was accepted.
    pub(super) fn store(&mut self, name: &Name, held: &Held) -> bool {
        let (request, fence) = (held.member.request, held.fence);
        let seen = self.names.entry(name.clone()).or_default();
        let Some(&grant) = seen.order.get(&(request, fence)) else {
            self.fault(|| format!("G6 {name}: a guard for {request}, which was never granted"));
            return false;
        };
        let (greatest, last) = seen.store;
        if fence < greatest {
            self.stale_writes_refused += 1;
            return false;
        }
        seen.store = (fence, grant.max(last));
        // Writes under one fence are one owner's.
        if fence > greatest && grant < last && !seen.set_back {
            self.fault(|| {
                format!("G3 {name}: the store took a write of {request} after one that was granted later")
            });
        }
        true
    }

    /// What was held before, and what is left of it. `when_ms` is when the server's clock would have shown a time.
    pub(super) fn data_lost(
        &mut self,
        name: &Name,
        before: &[HeldRow],
        left: &[HeldRow],
        when_ms: impl Fn(u64) -> u64,
    ) {
        self.data_lost = true;
        let mut lost = BTreeMap::new();
        for row in before {
            let kept = left.iter().any(|is| {
                is.request == row.request && is.mode >= row.mode && is.deadline_ms >= row.deadline_ms
            });
            if !kept {
                let until_ms = when_ms(row.deadline_ms);
                let of_owner = lost.entry(row.owner).or_default();
                *of_owner = until_ms.max(*of_owner);
                // Its upgrade may yet be undone, as far as its client knows.
                let undone = self
                    .asked
                    .get(&row.request)
                    .and_then(|(_, _, upgrade_of)| *upgrade_of);
                for request in std::iter::once(row.request).chain(undone) {
                    let until = self.excused.entry(request).or_default();
                    *until = until_ms.max(*until);
                }
            }
        }
        // Half upgraded: the server knew it by another request.
        for guard in self.guards.values().filter(|guard| guard.name == *name) {
            if !before.iter().any(|row| row.request == guard.request())
                && let Some(until_ms) = lost.get(&guard.owner())
            {
                let until = self.excused.entry(guard.request()).or_default();
                *until = (*until_ms).max(*until);
            }
        }
    }

    // -- at any time --------------------------------------------------------------------------------------------

    /// Is that to be planned? Not if it looks before that anyway, as it then plans the next.
    pub(super) fn will_look(&mut self, name: &Name, at_ms: u64, now_ms: u64) -> bool {
        let planned = self.looks.entry(name.clone()).or_default();
        let sooner = *planned <= now_ms || at_ms < *planned;
        if sooner {
            *planned = at_ms;
        }
        sooner
    }

    /// Looks at all guards of a name. `granted` is what the server has granted, `rows` who would hold if anybody asked now.
    /// `when_ms` is when the server's clock will show a time.
    pub(super) fn look(
        &mut self,
        name: &Name,
        granted: &[HeldRow],
        rows: &[HeldRow],
        now_ms: u64,
        when_ms: impl Fn(u64) -> u64,
    ) {
        if !self.excused.is_empty() {
            for row in granted {
                if self
                    .excused
                    .get(&row.request)
                    .is_some_and(|until| when_ms(row.deadline_ms) >= *until)
                {
                    self.excused.remove(&row.request);
                }
            }
        }
        let mut wrong = None;
        let mut holding: Vec<(RequestId, OwnerId, Mode, String)> = Vec::new();
        for guard in self.guards.values_mut().filter(|guard| guard.name == *name) {
            let (request, owner) = (guard.request(), guard.owner());
            if !guard.says_held() {
                let ended_ms = *guard.ended_ms.get_or_insert(now_ms);
                if !guard.lost_is_ready() {
                    wrong = Some(format!(
                        "G2 {}: not held any more, but lost() is not ready",
                        guard.who
                    ));
                }
                if let Some(open_ms) = guard.gate.open_since()
                    && now_ms > ended_ms.max(open_ms) + PROMPTLY_MS
                    && !guard.told.load(Ordering::Relaxed)
                {
                    wrong = Some(format!(
                        "G2 {}: lost since {ended_ms} ms, and who waits for lost() was not told",
                        guard.who
                    ));
                }
                continue;
            }
            if guard.ended_ms.is_some() {
                wrong = Some(format!(
                    "G1 {}: had ended, and says again that it is held",
                    guard.who
                ));
            }
            if guard.told.load(Ordering::Relaxed) {
                wrong = Some(format!(
                    "G2 {}: lost() said so, but it says that it is held",
                    guard.who
                ));
            }
            if let Some(until_ms) = self.excused.get(&request) {
                self.excuses += 1;
                if now_ms > *until_ms {
                    wrong = Some(format!(
                        "G1 {}: says that it is held, by a lease that the server lost and that ended at {until_ms} ms",
                        guard.who
                    ));
                }
                continue;
            }
            if let Some(other) = rows
                .iter()
                .find(|row| row.owner != owner && excludes(row.mode, guard.mode))
            {
                wrong = Some(format!(
                    "G1 {}: says that it is held in {} while the server gives {} to {}",
                    guard.who, guard.mode, other.mode, other.request
                ));
            } else if !rows
                .iter()
                .any(|row| row.request == request || row.owner == owner && row.mode >= guard.mode)
            {
                wrong = Some(format!(
                    "G1 {}: says that it is held in {}, of which the server knows nothing any more",
                    guard.who, guard.mode
                ));
            }
            for (_, _, mode, who) in holding
                .iter()
                .filter(|(_, other, mode, _)| *other != owner && excludes(*mode, guard.mode))
            {
                wrong = Some(format!(
                    "G1 {}: says that it is held in {} while {who} says so in {mode}",
                    guard.who, guard.mode
                ));
            }
            holding.push((request, owner, guard.mode, guard.who.clone()));
        }
        if let Some(wrong) = wrong {
            self.fault(|| wrong);
        }
    }
}
