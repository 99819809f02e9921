//! The lock as a machine: [`LockState::apply`] takes one call and gives its reply. Pure: no clock, no I/O, no async.
//!
//! This is three things at once: the readable specification, the embedded backend, and the oracle that the scripts
//! in `scripts/` are tested against, state by state. **When you change a rule here, change it there**: the functions
//! have the same names (`lapse`, `settle_owner`, `settle_writes`, `advance`, `live_head`, `alone`, `grant`, `siblings`).
//!
//! # The state, and how its parts go together
//!
//! An owner's **hold** is the list of its granted requests. What it counts as is its strongest mode:
//!
//! | `top`                 | `readers`                | the lock is                                                  |
//! |-----------------------|--------------------------|--------------------------------------------------------------|
//! | none                  | empty                    | free; then nobody waits, as whoever waits could enter        |
//! | none                  | some                     | read                                                         |
//! | `Upgradable`, owner O | any, without O           | read, and one of those who hold may upgrade                  |
//! | `Write`, owner O      | empty                    | written; O may also hold the other modes                     |
//!
//! `top` and `readers` never name the same owner, so "does anybody else hold?" is two look-ups, however many hold.
//!
//! The **queue** has four bands; within a band the ticket decides:
//!
//! 1. `Upgrade`: write requests of the owner that holds upgradable. Ahead of everybody: it cannot make room for them.
//! 2. `Write`, 3. `Upgradable`: in the order of their tickets across both, as neither passes the other.
//! 4. `Read`: these enter together.
//!
//! # Fairness
//!
//! Phase-fair, after Brandenburg and Anderson, "Spin-Based Reader-Writer Synchronization for Multiprocessor Real-Time
//! Systems" (2010): while a write request waits no new reader enters; when a write phase ends all waiting readers enter;
//! when the readers of that phase have left, the next writer enters. Re-entry alone passes the queue: an owner that holds and
//! had to wait behind one that waits for it would wait for ever. For the same reason an owner that waits to write, or for upgradable, is not let
//! in to read before that: it may well keep what it has until it has all. Its reads wait as long as what it waits for.
//!
//! # Who is alive
//!
//! A granted request lapses with its own lease. A waiting one is refreshed by polls and is passed over, and dropped, when it
//! has not been refreshed for a claim: only heads of bands are looked at, so nothing scans the queue. A grant is
//! first made for a claim, a short lease; the grantee's first renewal makes it a whole one. So a client that died delays the others by no more than
//! a claim, in line or just granted.

#[cfg(test)]
mod explore;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::protocol::{
    Acquire, Acquired, Answer, ClientId, Downgrade, Downgraded, EPOCH_US, Ending, Grant, HeldRow, Member,
    Mode, Operation, OwnerId, Polled, Push, Release, Released, Renewal, Renewed, Reply, RequestId, Revoke,
    Revoking, Snapshot, WaitRow, Withdraw, Withdrawn, WithdrawnFrom,
};

/// How old a lone reader's request may be to tell by itself since when it holds.
const FRESH_MS: u64 = 1_000;
/// How many holders a blame names.
pub(crate) const BLAME_ROWS: usize = 4;

/// What a step needs to know besides the call.
pub(crate) struct Context<'a> {
    /// The only clock: microseconds since 1970.
    pub(crate) now_us: u64,
    pub(crate) tuning: Tuning,
    /// Does this client hear its pushes?
    pub(crate) heard: &'a dyn Fn(ClientId) -> bool,
}

/// Durations that every client of a name must agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// How long a grant made by a push lasts unless it is renewed, and a waiting request unless it is polled.
    pub(crate) claim_ms: u64,
    /// How long a mark is kept: longer than any call is still repeated or under way.
    pub(crate) mark_ms: u64,
    /// How long a name's fence outlives its last hold, at least.
    pub(crate) retention_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Granted {
    request: RequestId,
    mode: Mode,
    deadline_ms: u64,
    since_ms: u64,
    revoked: bool,
    label: String,
}

/// An owner's granted requests, in the order of their grants.
type Hold = Vec<Granted>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Top {
    mode: Mode,
    owner: OwnerId,
    due_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Band {
    Upgrade,
    Write,
    Upgradable,
    Read,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Waiter {
    owner: OwnerId,
    mode: Mode,
    band: Band,
    ticket: u64,
    lease_ms: u64,
    until_ms: u64,
    upgrade_of: Option<RequestId>,
    label: String,
}

/// One name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LockState {
    /// The last fence issued; 0 when none is known.
    fence: u64,
    top: Option<Top>,
    /// The owners that only read, by their earliest deadline.
    readers: BTreeSet<(u64, OwnerId)>,
    holds: HashMap<OwnerId, Hold>,
    queue: BTreeMap<(Band, u64, RequestId), OwnerId>,
    waiters: HashMap<RequestId, Waiter>,
    /// The requests of an owner that wait, in the order they asked.
    waiting_of: HashMap<OwnerId, Vec<RequestId>>,
    last_ticket: u64,
    /// What ended in a way that a late or repeated call must hear of, and until when that is kept.
    marks: HashMap<RequestId, (Ending, u64)>,
    marks_by_end: BTreeSet<(u64, RequestId)>,
}

fn now_ms(cx: &Context<'_>) -> u64 {
    cx.now_us / 1000
}

/// The earliest deadline in a hold: when it needs to be looked at.
fn due(hold: &Hold) -> u64 {
    hold.iter().map(|g| g.deadline_ms).min().unwrap_or(u64::MAX)
}

fn strongest(hold: &Hold) -> Option<Mode> {
    hold.iter().map(|g| g.mode).max()
}

fn depth(hold: &Hold, mode: Mode) -> u64 {
    hold.iter().filter(|g| g.mode == mode).count() as u64
}

/// What would become of a request, if it were made now and did not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Would {
    Grant,
    Not,
    /// Its owner is there already, and it is not to re-enter.
    Refuse,
}

/// The same for several that are taken together, in their order: `None` if all would be granted; else why not. A refusal matters more than who is
/// in the way, so where there may be one all are looked at.
pub(crate) fn would_grant_all<'a>(
    ops: impl IntoIterator<Item = &'a Acquire> + Clone,
    mut look: impl FnMut(usize, &Acquire) -> Would,
) -> Option<WhyNot> {
    let some_first = ops.clone().into_iter().any(|op| op.first);
    let mut busy = false;
    for (at, op) in ops.into_iter().enumerate() {
        match look(at, op) {
            Would::Grant => {}
            Would::Not if some_first => busy = true,
            Would::Not => return Some(WhyNot::Busy),
            Would::Refuse => return Some(WhyNot::Refused(at)),
        }
    }
    busy.then_some(WhyNot::Busy)
}

/// Why several are not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhyNot {
    /// One can't be had at once.
    Busy,
    /// The owner of this one is there already, and it is not to re-enter.
    Refused(usize),
}

impl LockState {
    /// One step. Replies, and tells the clients that were given something or must give something back.
    pub(crate) fn apply(&mut self, call: &Operation, cx: &Context<'_>) -> (Answer, Vec<(ClientId, Push)>) {
        let mut pushes = Pushes::default();
        let freed = !self.is_quiet(call) && self.lapse(cx);
        let reply = match call {
            Operation::Acquire(op) => Reply::Acquire(self.acquire(op, freed, cx, &mut pushes)),
            Operation::Release(op) => Reply::Release(self.release(op, freed, cx, &mut pushes)),
            Operation::Downgrade(op) => Reply::Downgrade(self.downgrade(op, freed, cx, &mut pushes)),
            Operation::Renew(ops) => {
                let reply = ops.iter().map(|op| self.renew(op, cx)).collect();
                self.advance(freed, cx, &mut pushes);
                Reply::Renew(reply)
            }
            Operation::Withdraw(op) => Reply::Withdraw(self.withdraw(op, freed, cx, &mut pushes)),
            Operation::Poll(members) => Reply::Poll(self.poll(members, freed, cx, &mut pushes)),
            Operation::Revoke(op) => {
                let reply = self.revoke(op, &mut pushes);
                self.advance(freed, cx, &mut pushes);
                Reply::Revoke(reply)
            }
            Operation::Inspect(limit) => {
                self.advance(freed, cx, &mut pushes);
                Reply::Inspect(self.snapshot(*limit))
            }
        };
        let answer = Answer {
            now_us: (!matches!(call, Operation::Release(_))).then_some(cx.now_us),
            reply,
        };
        (answer, pushes.into_messages(cx.now_us))
    }

    /// A release of what is still there, that nobody waits for: nobody needs to know what time it is. So it may give back what nobody else
    /// could have had, although its lease has run out.
    fn is_quiet(&self, call: &Operation) -> bool {
        matches!(call, Operation::Release(op)
            if self.queue.is_empty() && !op.mark && self.granted(op.owner, op.request).is_some())
    }

    // -- time ---------------------------------------------------------------------------------------------------

    /// Drops every granted request whose lease has run out. Tells whether a write phase ended by it.
    fn lapse(&mut self, cx: &Context<'_>) -> bool {
        let now = now_ms(cx);
        let mut write_ended = false;
        loop {
            let owner = match (self.top, self.readers.first()) {
                (Some(top), _) if top.due_ms <= now => top.owner,
                (_, Some(&(due_ms, owner))) if due_ms <= now => owner,
                _ => return write_ended,
            };
            let mut hold = self.holds.get(&owner).cloned().unwrap_or_default();
            for gone in hold.extract_if(.., |g| g.deadline_ms <= now) {
                // One that was being taken away was taken away, even if its holder never answered.
                let ending = if gone.revoked {
                    Ending::Revoked
                } else {
                    Ending::Lapsed
                };
                self.mark(gone.request, ending, cx);
            }
            write_ended |= self.settle_owner(owner, hold);
        }
    }

    /// Stores an owner's hold and puts the owner where its strongest mode belongs. Tells whether a write phase ended.
    fn settle_owner(&mut self, owner: OwnerId, hold: Hold) -> bool {
        let was_top = self.top.is_some_and(|top| top.owner == owner);
        let write_ended = self.place_owner(owner, hold);
        if was_top {
            self.leave_for_more(owner);
        }
        write_ended
    }

    /// The same for a part of a change: whether the owner may stay in line is seen when it is whole.
    fn place_owner(&mut self, owner: OwnerId, hold: Hold) -> bool {
        let was_writing = self.is_top(owner, Mode::Write);
        if let Some(old) = self.holds.get(&owner) {
            self.readers.remove(&(due(old), owner));
        }
        if self.top.is_some_and(|top| top.owner == owner) {
            self.top = None;
        }
        match strongest(&hold) {
            None => {}
            Some(Mode::Read) => {
                self.readers.insert((due(&hold), owner));
            }
            Some(mode) => {
                self.top = Some(Top {
                    mode,
                    owner,
                    due_ms: due(&hold),
                });
            }
        }
        if hold.is_empty() {
            self.holds.remove(&owner);
        } else {
            self.holds.insert(owner, hold);
        }
        self.settle_writes(owner);
        was_writing && !self.is_top(owner, Mode::Write)
    }

    /// The write requests of an owner wait at the head exactly while it holds upgradable.
    fn settle_writes(&mut self, owner: OwnerId) {
        let band = if self.is_top(owner, Mode::Upgradable) {
            Band::Upgrade
        } else {
            Band::Write
        };
        for request in self.waiting_of.get(&owner).into_iter().flatten() {
            if let Some(waiter) = self.waiters.get_mut(request)
                && waiter.mode == Mode::Write
                && waiter.band != band
            {
                self.queue.remove(&(waiter.band, waiter.ticket, *request));
                self.queue.insert((band, waiter.ticket, *request), owner);
                waiter.band = band;
            }
        }
    }

    /// An owner that has come to only read does not stay in line for more: it would wait for itself, or two would for each other. It asks again,
    /// and is refused if it can't be let in at once.
    fn leave_for_more(&mut self, owner: OwnerId) {
        if self.holds.get(&owner).and_then(strongest) != Some(Mode::Read) {
            return;
        }
        for request in self.waiting_of.get(&owner).cloned().unwrap_or_default() {
            if self.waiters[&request].mode > Mode::Read {
                self.leave(request);
            }
        }
    }

    // -- questions ----------------------------------------------------------------------------------------------

    fn is_top(&self, owner: OwnerId, mode: Mode) -> bool {
        self.top.is_some_and(|top| top.owner == owner && top.mode == mode)
    }

    /// Does nobody but this owner hold?
    fn alone(&self, owner: OwnerId) -> bool {
        let reads = self.holds.contains_key(&owner) && self.top.is_none_or(|top| top.owner != owner);
        self.top.is_none_or(|top| top.owner == owner) && self.readers.len() == usize::from(reads)
    }

    fn granted(&self, owner: OwnerId, request: RequestId) -> Option<&Granted> {
        self.holds.get(&owner)?.iter().find(|g| g.request == request)
    }

    /// May this request still be replaced by an upgrade? What is being taken away may not: the upgrade would make it whole.
    fn upgradable_from(&self, owner: OwnerId, from: RequestId) -> bool {
        self.granted(owner, from).is_some_and(|g| !g.revoked)
    }

    /// What a granted request has.
    fn grant_of(&self, owner: OwnerId, granted: &Granted) -> Grant {
        Grant {
            fence: self.fence,
            deadline_ms: granted.deadline_ms,
            depth: self.holds.get(&owner).map_or(0, |hold| depth(hold, granted.mode)),
        }
    }

    /// Why this server knows of no such grant.
    fn ending(&self, request: RequestId, fence: u64, cx: &Context<'_>) -> Ending {
        match self.marks.get(&request) {
            Some(&(ending, until_ms)) if until_ms > now_ms(cx) => ending,
            _ if self.fence < fence => Ending::Forgotten,
            _ => Ending::Unknown,
        }
    }

    /// Was it refreshed in time, and is what it would upgrade still there?
    fn is_live(&self, waiter: &Waiter, cx: &Context<'_>) -> bool {
        waiter.until_ms > now_ms(cx)
            && waiter
                .upgrade_of
                .is_none_or(|from| self.upgradable_from(waiter.owner, from))
    }

    /// Does this owner also wait for more than to read? Its reads then enter with that, not before: two owners that each read already
    /// and wait to write would wait for each other. Drops the dead ones it meets: they must not come back to life behind such a read.
    fn waits_for_more(&mut self, owner: OwnerId, cx: &Context<'_>) -> bool {
        for request in self.waiting_of.get(&owner).cloned().unwrap_or_default() {
            let waiter = &self.waiters[&request];
            if waiter.mode > Mode::Read {
                if self.is_live(waiter, cx) {
                    return true;
                }
                self.leave(request);
            }
        }
        false
    }

    /// The first in a band that is alive. Drops the dead ones it meets.
    fn live_head(&mut self, band: Band, cx: &Context<'_>) -> Option<RequestId> {
        loop {
            let (_, _, request) = *self
                .queue
                .range((band, 0, LOWEST)..)
                .next()
                .filter(|((b, _, _), _)| *b == band)?
                .0;
            if self.is_live(&self.waiters[&request], cx) {
                return Some(request);
            }
            self.leave(request);
        }
    }

    /// The first write request in line, whichever band it is in.
    fn live_writer(&mut self, cx: &Context<'_>) -> Option<RequestId> {
        self.live_head(Band::Upgrade, cx)
            .or_else(|| self.live_head(Band::Write, cx))
    }

    /// When the first in line should look again: when the earliest lease in its way lapses.
    fn wake_ms(&self, request: RequestId) -> u64 {
        match self.queue.first_key_value() {
            Some(((_, _, first), _)) if *first == request => {
                let top = self.top.map_or(u64::MAX, |top| top.due_ms);
                let reader = self.readers.first().map_or(u64::MAX, |(due_ms, _)| *due_ms);
                top.min(reader)
            }
            _ => 0,
        }
    }

    /// Does this waiter stand behind the place that an acquisition comes back to?
    fn is_behind(&self, waiting: RequestId, op: &Acquire) -> bool {
        let waiter = &self.waiters[&waiting];
        waiter.band != Band::Upgrade && op.ticket > 0 && op.ticket < waiter.ticket
    }

    // -- the line -----------------------------------------------------------------------------------------------

    fn enqueue(&mut self, op: &Acquire, band: Band, cx: &Context<'_>) -> u64 {
        let ticket = if op.ticket > 0 {
            op.ticket
        } else {
            (self.last_ticket + 1).max(cx.now_us.saturating_sub(EPOCH_US))
        };
        self.last_ticket = self.last_ticket.max(ticket);
        self.queue.insert((band, ticket, op.request), op.owner);
        self.waiting_of.entry(op.owner).or_default().push(op.request);
        self.waiters.insert(
            op.request,
            Waiter {
                owner: op.owner,
                mode: op.mode,
                band,
                ticket,
                lease_ms: op.lease_ms,
                until_ms: now_ms(cx) + cx.tuning.claim_ms,
                upgrade_of: op.upgrade_of,
                label: op.label.clone(),
            },
        );
        ticket
    }

    /// Takes a request out of the line.
    fn leave(&mut self, request: RequestId) -> Option<Waiter> {
        let waiter = self.waiters.remove(&request)?;
        self.queue.remove(&(waiter.band, waiter.ticket, request));
        if let Some(waiting) = self.waiting_of.get_mut(&waiter.owner) {
            waiting.retain(|r| *r != request);
            if waiting.is_empty() {
                self.waiting_of.remove(&waiter.owner);
            }
        }
        Some(waiter)
    }

    /// Lets in whoever may enter now, and tells their clients. What a client did not hear it does not get: it leaves the line, and
    /// the next is looked at.
    fn advance(&mut self, write_ended: bool, cx: &Context<'_>, pushes: &mut Pushes) {
        let mut readers_first = write_ended;
        while !self.queue.is_empty() && self.top.is_none_or(|top| top.mode != Mode::Write) {
            let mut batch = Vec::new();
            let writer = self.live_writer(cx);
            if readers_first {
                self.grant_readers(cx, &mut batch);
            }
            // Neither of the two passes the other; an upgrade passes both.
            let upgradable = self.live_head(Band::Upgradable, cx).filter(|u| {
                writer.is_none_or(|w| {
                    self.waiters[&w].band == Band::Write && self.waiters[u].ticket < self.waiters[&w].ticket
                })
            });
            if let Some(request) = writer
                && batch.is_empty()
                && upgradable.is_none()
                && self.alone(self.waiters[&request].owner)
            {
                self.grant_waiter(request, cx, &mut batch);
            } else {
                if let Some(request) = upgradable
                    && self.top.is_none()
                {
                    self.grant_waiter(request, cx, &mut batch);
                }
                if writer.is_none() {
                    self.grant_readers(cx, &mut batch);
                }
            }
            if batch.is_empty() {
                return;
            }
            // An owner that entered and waits for more may be able to get it.
            let wants_more = batch.iter().any(|undo| self.waiting_of.contains_key(&undo.owner));
            let unheard = self.deliver(batch, cx, pushes);
            if !unheard && !wants_more {
                return;
            }
            // Somebody was deaf. The readers that waited have had their turn.
            readers_first = false;
        }
    }

    fn grant_readers(&mut self, cx: &Context<'_>, batch: &mut Vec<Undo>) {
        let readers: Vec<_> = self
            .queue
            .range((Band::Read, 0, LOWEST)..)
            .map(|((_, _, request), _)| *request)
            .collect();
        for request in readers {
            // It may have entered as a sibling of one before it.
            if let Some(owner) = self.waiters.get(&request).map(|waiter| waiter.owner)
                && !self.waits_for_more(owner, cx)
            {
                self.grant_waiter(request, cx, batch);
            }
        }
    }

    /// Grants a waiting request, and every other request of its owner that may now re-enter.
    fn grant_waiter(&mut self, request: RequestId, cx: &Context<'_>, batch: &mut Vec<Undo>) {
        let Some(waiter) = self.leave(request) else {
            return;
        };
        if waiter.until_ms <= now_ms(cx) {
            return;
        }
        let owner = waiter.owner;
        batch.push(self.grant(request, waiter, cx));
        self.siblings(owner, cx, batch);
    }

    /// The other requests of an owner that now holds: those that may re-enter do.
    fn siblings(&mut self, owner: OwnerId, cx: &Context<'_>, batch: &mut Vec<Undo>) {
        for request in self.waiting_of.get(&owner).cloned().unwrap_or_default() {
            let Some(held) = self.holds.get(&owner).and_then(strongest) else {
                return;
            };
            let Some(waiter) = self.waiters.get(&request) else {
                continue;
            };
            if reenters(held, waiter.mode)
                && let Some(waiter) = self.leave(request)
                && self.is_live(&waiter, cx)
            {
                batch.push(self.grant(request, waiter, cx));
            }
        }
    }

    /// Makes a waiter a holder, for a claim.
    fn grant(&mut self, request: RequestId, waiter: Waiter, cx: &Context<'_>) -> Undo {
        let lease_ms = waiter.lease_ms.min(cx.tuning.claim_ms);
        self.enter(
            Entering {
                request,
                owner: waiter.owner,
                mode: waiter.mode,
                lease_ms,
                since_ms: now_ms(cx),
                upgrade_of: waiter.upgrade_of,
                label: waiter.label,
            },
            cx,
        )
    }

    fn enter(&mut self, new: Entering, cx: &Context<'_>) -> Undo {
        let before = self.holds.get(&new.owner).cloned().unwrap_or_default();
        let mut hold = before.clone();
        let mut deadline_ms = now_ms(cx) + new.lease_ms;
        if let Some(from) = new.upgrade_of
            && let Some(at) = hold.iter().position(|g| g.request == from)
        {
            deadline_ms = deadline_ms.max(hold.remove(at).deadline_ms);
            self.mark(from, Ending::Replaced, cx);
        }
        if self.fence == 0 || (new.mode == Mode::Write && strongest(&before) != Some(Mode::Write)) {
            self.fence = (self.fence + 1).max(cx.now_us);
        }
        hold.push(Granted {
            request: new.request,
            mode: new.mode,
            deadline_ms,
            since_ms: new.since_ms,
            revoked: false,
            label: new.label,
        });
        self.settle_owner(new.owner, hold);
        Undo {
            request: new.request,
            owner: new.owner,
            upgrade_of: before.into_iter().find(|g| Some(g.request) == new.upgrade_of),
        }
    }

    /// Tells the clients of a batch, each at once of all it got; takes back what was not heard. Tells whether anything was.
    fn deliver(&mut self, batch: Vec<Undo>, cx: &Context<'_>, pushes: &mut Pushes) -> bool {
        let mut clients: Vec<(ClientId, Vec<Undo>)> = Vec::new();
        let mut place = HashMap::new();
        for undo in batch {
            let client = undo.request.client;
            let at = *place.entry(client).or_insert(clients.len());
            if at == clients.len() {
                clients.push((client, Vec::new()));
            }
            clients[at].1.push(undo);
        }
        let mut unheard = false;
        let mut undone = Vec::new();
        for (client, undos) in clients {
            if client.is_quiet() || (cx.heard)(client) {
                for undo in undos {
                    if let Some(granted) = self.granted(undo.owner, undo.request) {
                        let grant = self.grant_of(undo.owner, granted);
                        pushes.granted(undo.request, grant);
                    }
                }
            } else {
                unheard = true;
                for undo in undos {
                    let mut hold = self.holds.get(&undo.owner).cloned().unwrap_or_default();
                    hold.retain(|g| g.request != undo.request);
                    if let Some(from) = undo.upgrade_of {
                        self.unmark(from.request);
                        hold.push(from);
                    }
                    self.place_owner(undo.owner, hold);
                    undone.push(undo.owner);
                }
            }
        }
        for owner in undone {
            self.leave_for_more(owner);
        }
        unheard
    }

    // -- operations ---------------------------------------------------------------------------------------------

    fn acquire(&mut self, op: &Acquire, freed: bool, cx: &Context<'_>, pushes: &mut Pushes) -> Acquired {
        self.advance(freed, cx, pushes);
        if let Some(granted) = self.granted(op.owner, op.request) {
            return Acquired::Granted(self.grant_of(op.owner, granted));
        }
        if let Some(waiter) = self.waiters.get_mut(&op.request) {
            waiter.until_ms = now_ms(cx) + cx.tuning.claim_ms;
            let ticket = waiter.ticket;
            return Acquired::Queued {
                ticket,
                wake_ms: self.wake_ms(op.request),
            };
        }
        let ending = self.ending(op.request, 0, cx);
        if ending != Ending::Unknown {
            return Acquired::Ended(ending);
        }
        if let Some(from) = op.upgrade_of
            && !self.upgradable_from(op.owner, from)
        {
            return Acquired::Ended(match self.granted(op.owner, from) {
                Some(_) => Ending::Revoked,
                None => self.ending(from, 0, cx),
            });
        }
        let held = self.holds.get(&op.owner).and_then(strongest);
        if self.is_second(op) {
            return Acquired::Refused;
        }
        if self.admits(op, cx) {
            let entered = self.enter(
                Entering {
                    request: op.request,
                    owner: op.owner,
                    mode: op.mode,
                    lease_ms: op.lease_ms,
                    since_ms: self.since(op, cx),
                    upgrade_of: op.upgrade_of,
                    label: op.label.clone(),
                },
                cx,
            );
            let mut batch = Vec::new();
            self.siblings(op.owner, cx, &mut batch);
            self.deliver(batch, cx, pushes);
            // An owner that now holds upgradable may be able to write.
            if self.waiting_of.contains_key(&op.owner) {
                self.advance(false, cx, pushes);
            }
            return match self.granted(entered.owner, entered.request) {
                Some(granted) => Acquired::Granted(self.grant_of(entered.owner, granted)),
                None => Acquired::Ended(Ending::Unknown),
            };
        }
        if !op.wait {
            return Acquired::Busy;
        }
        let band = match (op.mode, held) {
            (Mode::Write, Some(Mode::Upgradable)) => Band::Upgrade,
            (_, Some(_)) => return Acquired::Refused,
            (Mode::Write, None) => Band::Write,
            (Mode::Upgradable, None) => Band::Upgradable,
            (Mode::Read, None) => Band::Read,
        };
        let ticket = self.enqueue(op, band, cx);
        Acquired::Queued {
            ticket,
            wake_ms: self.wake_ms(op.request),
        }
    }

    /// It is not to re-enter, and its owner holds already, or waits.
    fn is_second(&self, op: &Acquire) -> bool {
        op.first && (self.holds.contains_key(&op.owner) || self.waiting_of.contains_key(&op.owner))
    }

    /// May this owner hold in this mode at once?
    fn admits(&mut self, op: &Acquire, cx: &Context<'_>) -> bool {
        let held = self.holds.get(&op.owner).and_then(strongest);
        held.is_some_and(|held| reenters(held, op.mode))
            || match op.mode {
                Mode::Read => {
                    self.top.is_none_or(|top| top.mode != Mode::Write)
                        && self.live_writer(cx).is_none()
                        && !self.waits_for_more(op.owner, cx)
                }
                Mode::Upgradable => {
                    self.top.is_none()
                        && (held.is_some()
                            || (self.live_writer(cx).is_none_or(|w| self.is_behind(w, op))
                                && self
                                    .live_head(Band::Upgradable, cx)
                                    .is_none_or(|u| self.is_behind(u, op))))
                }
                Mode::Write => self.alone(op.owner),
            }
    }

    /// The first half of taking several names at once, all or none: would this one be granted? Everything but that is as in a step of its own. The second half
    /// is an acquisition of each.
    pub(crate) fn would_grant(&mut self, op: &Acquire, cx: &Context<'_>) -> (Would, Vec<(ClientId, Push)>) {
        let mut pushes = Pushes::default();
        let freed = self.lapse(cx);
        self.advance(freed, cx, &mut pushes);
        let would = if self.granted(op.owner, op.request).is_some() {
            Would::Grant
        } else if self.ending(op.request, 0, cx) != Ending::Unknown {
            Would::Not
        } else if self.is_second(op) {
            Would::Refuse
        } else if self.admits(op, cx) {
            Would::Grant
        } else {
            Would::Not
        };
        (would, pushes.into_messages(cx.now_us))
    }

    /// Since when a request holds that enters at once. One that its owner was made for, and that only reads, tells it by itself: all that need be
    /// stored of it is its id and its deadline.
    fn since(&self, op: &Acquire, cx: &Context<'_>) -> u64 {
        let (now, made) = (now_ms(cx), op.request.made_ms());
        let lone = op.mode == Mode::Read
            && op.owner == OwnerId::of(op.request)
            && op.label.is_empty()
            && !self.holds.contains_key(&op.owner);
        if lone && made <= now && now - made <= FRESH_MS {
            made
        } else {
            now
        }
    }

    fn release(&mut self, op: &Release, mut freed: bool, cx: &Context<'_>, pushes: &mut Pushes) -> Released {
        let reply = if self.granted(op.owner, op.request).is_some() {
            freed |= self.drop_granted(op.owner, op.request);
            Released::Released
        } else {
            match self.ending(op.request, op.fence, cx) {
                // The copy that was sent before has done it.
                Ending::Unknown | Ending::Withdrawn | Ending::Replaced if op.again => Released::Released,
                ending => Released::NotHeld(ending),
            }
        };
        let known = !matches!(self.ending(op.request, 0, cx), Ending::Unknown | Ending::Replaced);
        if op.mark && !known {
            self.mark(op.request, Ending::Withdrawn, cx);
        }
        self.advance(freed, cx, pushes);
        reply
    }

    fn drop_granted(&mut self, owner: OwnerId, request: RequestId) -> bool {
        let mut hold = self.holds.get(&owner).cloned().unwrap_or_default();
        hold.retain(|g| g.request != request);
        self.settle_owner(owner, hold)
    }

    /// An upgrade that its caller no longer waits for: the caller has its upgradable hold again, unless it has given that
    /// back in the meantime.
    fn undo_upgrade(
        &mut self,
        owner: OwnerId,
        request: RequestId,
        from: RequestId,
        cx: &Context<'_>,
    ) -> bool {
        let is_there = self.granted(owner, from).is_some() || self.waiters.contains_key(&from);
        if is_there || !matches!(self.ending(from, 0, cx), Ending::Unknown | Ending::Replaced) {
            return self.drop_granted(owner, request);
        }
        self.unmark(from);
        let mut hold = self.holds.get(&owner).cloned().unwrap_or_default();
        for g in hold.iter_mut().filter(|g| g.request == request) {
            g.request = from;
            g.mode = g.mode.min(Mode::Upgradable);
        }
        self.settle_owner(owner, hold)
    }

    fn mark(&mut self, request: RequestId, ending: Ending, cx: &Context<'_>) {
        while let Some(&(until_ms, old)) = self.marks_by_end.first()
            && until_ms <= now_ms(cx)
        {
            self.marks_by_end.pop_first();
            self.marks.remove(&old);
        }
        let until_ms = now_ms(cx) + cx.tuning.mark_ms;
        if let Some((_, old)) = self.marks.insert(request, (ending, until_ms)) {
            self.marks_by_end.remove(&(old, request));
        }
        self.marks_by_end.insert((until_ms, request));
    }

    fn unmark(&mut self, request: RequestId) {
        if let Some((_, until_ms)) = self.marks.remove(&request) {
            self.marks_by_end.remove(&(until_ms, request));
        }
    }

    fn downgrade(
        &mut self,
        op: &Downgrade,
        mut freed: bool,
        cx: &Context<'_>,
        pushes: &mut Pushes,
    ) -> Downgraded {
        let held = self
            .granted(op.owner, op.request)
            .filter(|g| !g.revoked)
            .is_some();
        if held {
            let mut hold = self.holds.get(&op.owner).cloned().unwrap_or_default();
            for g in hold.iter_mut().filter(|g| g.request == op.request) {
                g.mode = g.mode.min(op.to);
            }
            freed |= self.settle_owner(op.owner, hold);
        }
        let reply = match self.granted(op.owner, op.request) {
            Some(g) if g.revoked => Downgraded::NotHeld(Ending::Revoked),
            Some(g) => Downgraded::Downgraded(self.grant_of(op.owner, g)),
            None => Downgraded::NotHeld(self.ending(op.request, op.fence, cx)),
        };
        self.advance(freed, cx, pushes);
        reply
    }

    fn renew(&mut self, op: &Renewal, cx: &Context<'_>) -> Renewed {
        let Some(mut hold) = self.holds.get(&op.owner).cloned() else {
            return Renewed::NotHeld(self.ending(op.request, op.fence, cx));
        };
        let Some(granted) = hold.iter_mut().find(|g| g.request == op.request) else {
            return Renewed::NotHeld(self.ending(op.request, op.fence, cx));
        };
        if granted.revoked {
            return Renewed::NotHeld(Ending::Revoked);
        }
        let from_ms = if op.fixed { granted.since_ms } else { now_ms(cx) };
        granted.deadline_ms = granted.deadline_ms.max(from_ms + op.lease_ms);
        let deadline_ms = granted.deadline_ms;
        self.settle_owner(op.owner, hold);
        Renewed::Renewed { deadline_ms }
    }

    fn withdraw(
        &mut self,
        op: &Withdraw,
        mut freed: bool,
        cx: &Context<'_>,
        pushes: &mut Pushes,
    ) -> Withdrawn {
        let mut withdrawn = Withdrawn {
            was: WithdrawnFrom::Absent,
            blame: Snapshot::default(),
            ahead: 0,
        };
        if op.blame {
            withdrawn.blame = self.snapshot(BLAME_ROWS);
            withdrawn.blame.waiting.clear();
        }
        if self.granted(op.owner, op.request).is_some() {
            freed |= match op.upgrade_of {
                Some(from) => self.undo_upgrade(op.owner, op.request, from, cx),
                None => self.drop_granted(op.owner, op.request),
            };
            withdrawn.was = WithdrawnFrom::Held;
        } else if let Some(waiter) = self.waiters.get(&op.request) {
            let place = (waiter.band, waiter.ticket, op.request);
            if op.blame {
                withdrawn.ahead = self.queue.range(..place).count() as u64;
            }
            self.leave(op.request);
            withdrawn.was = WithdrawnFrom::Queued;
        }
        self.mark(op.request, Ending::Withdrawn, cx);
        self.advance(freed, cx, pushes);
        withdrawn
    }

    fn poll(
        &mut self,
        members: &[Member],
        freed: bool,
        cx: &Context<'_>,
        pushes: &mut Pushes,
    ) -> Vec<Polled> {
        for member in members {
            if let Some(waiter) = self.waiters.get_mut(&member.request) {
                waiter.until_ms = now_ms(cx) + cx.tuning.claim_ms;
            }
        }
        self.advance(freed, cx, pushes);
        members
            .iter()
            .map(|member| {
                if let Some(granted) = self.granted(member.owner, member.request) {
                    Polled::Granted(self.grant_of(member.owner, granted))
                } else if self.waiters.contains_key(&member.request) {
                    Polled::Queued {
                        wake_ms: self.wake_ms(member.request),
                    }
                } else {
                    Polled::NotHeld(self.ending(member.request, 0, cx))
                }
            })
            .collect()
    }

    fn revoke(&mut self, op: &Revoke, pushes: &mut Pushes) -> Revoking {
        let mut revoking = Revoking {
            requests: 0,
            deadline_ms: 0,
        };
        let owners: Vec<OwnerId> = match op.owner {
            Some(owner) => vec![owner],
            None => self
                .top
                .map(|top| top.owner)
                .into_iter()
                .chain(self.readers.iter().map(|(_, owner)| *owner))
                .collect(),
        };
        for owner in owners {
            for granted in self.holds.get_mut(&owner).into_iter().flatten() {
                if granted.since_ms <= op.granted_by_ms {
                    granted.revoked = true;
                    pushes.revoked(granted.request);
                }
                if granted.revoked {
                    revoking.requests += 1;
                    revoking.deadline_ms = revoking.deadline_ms.max(granted.deadline_ms);
                }
            }
        }
        revoking
    }

    pub(crate) fn snapshot(&self, limit: usize) -> Snapshot {
        let owners = self
            .top
            .map(|top| top.owner)
            .into_iter()
            .chain(self.readers.iter().map(|(_, owner)| *owner))
            .take(limit);
        let holding = owners
            .flat_map(|owner| {
                self.holds
                    .get(&owner)
                    .into_iter()
                    .flatten()
                    .map(move |g| (owner, g))
            })
            .map(|(owner, g)| HeldRow {
                request: g.request,
                owner,
                mode: g.mode,
                since_ms: g.since_ms,
                deadline_ms: g.deadline_ms,
                revoked: g.revoked,
                label: g.label.clone(),
            })
            .collect();
        let waiting = self
            .queue
            .keys()
            .take(limit)
            .map(|(_, ticket, request)| {
                let waiter = &self.waiters[request];
                WaitRow {
                    request: *request,
                    owner: waiter.owner,
                    mode: waiter.mode,
                    since_ms: (ticket + EPOCH_US) / 1000,
                    label: waiter.label.clone(),
                }
            })
            .collect();
        Snapshot {
            fence: self.fence,
            holders: self.holds.len() as u64,
            waiters: self.queue.len() as u64,
            holding,
            waiting,
        }
    }

    // -- for the embedded backend -------------------------------------------------------------------------------

    /// When the last mark ends; 0 without one.
    pub(crate) fn marked_until_ms(&self) -> u64 {
        self.marks_by_end.last().map_or(0, |(until_ms, _)| *until_ms)
    }

    /// Somebody is in line.
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Nobody holds and nobody waits: all that is left is the fence, and marks.
    pub(crate) fn is_idle(&self) -> bool {
        self.holds.is_empty() && self.queue.is_empty()
    }
}

/// Below every request: the start of a band's range.
const LOWEST: RequestId = RequestId {
    client: ClientId(0),
    number: 0,
};

/// May an owner that holds `held` enter `mode` past everybody?
fn reenters(held: Mode, mode: Mode) -> bool {
    mode <= held
}

struct Entering {
    request: RequestId,
    owner: OwnerId,
    mode: Mode,
    lease_ms: u64,
    since_ms: u64,
    upgrade_of: Option<RequestId>,
    label: String,
}

/// What takes a grant back that nobody heard.
struct Undo {
    request: RequestId,
    owner: OwnerId,
    upgrade_of: Option<Granted>,
}

/// Collected while a step runs, so that a client gets one message of each kind.
#[derive(Default)]
struct Pushes {
    granted: BTreeMap<ClientId, Vec<(RequestId, Grant)>>,
    revoked: BTreeMap<ClientId, Vec<RequestId>>,
}

impl Pushes {
    fn granted(&mut self, request: RequestId, grant: Grant) {
        self.granted
            .entry(request.client)
            .or_default()
            .push((request, grant));
    }

    fn revoked(&mut self, request: RequestId) {
        self.revoked.entry(request.client).or_default().push(request);
    }

    fn into_messages(self, now_us: u64) -> Vec<(ClientId, Push)> {
        let granted = self
            .granted
            .into_iter()
            .map(|(client, grants)| (client, Push::Granted { now_us, grants }));
        let revoked = self
            .revoked
            .into_iter()
            .map(|(client, requests)| (client, Push::Revoked { requests }));
        granted.chain(revoked).collect()
    }
}

/// A state in a form that can be compared with what a server holds.
#[cfg(test)]
#[allow(
    clippy::type_complexity,
    reason = "flat, so that a difference is seen at a glance"
)]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Normal {
    pub(crate) fence: u64,
    pub(crate) top: Option<(Mode, OwnerId, u64)>,
    pub(crate) readers: Vec<(u64, OwnerId)>,
    /// By owner, in the order of the grants: request, mode, deadline, since, revoked, label.
    pub(crate) holds: BTreeMap<OwnerId, Vec<(RequestId, Mode, u64, u64, bool, String)>>,
    /// In line: band from -1, ticket, request, owner.
    pub(crate) queue: Vec<(i64, u64, RequestId, OwnerId)>,
    /// By request: owner, mode, lease, until, upgrade_of, label.
    pub(crate) waiters: BTreeMap<RequestId, (OwnerId, Mode, u64, u64, Option<RequestId>, String)>,
    pub(crate) waiting_of: BTreeMap<OwnerId, Vec<RequestId>>,
    pub(crate) last_ticket: u64,
    /// Those that have not ended.
    pub(crate) marks: BTreeMap<RequestId, (&'static str, u64)>,
}

#[cfg(test)]
impl LockState {
    pub(crate) fn normal(&self, now_us: u64) -> Normal {
        Normal {
            fence: self.fence,
            top: self.top.map(|top| (top.mode, top.owner, top.due_ms)),
            readers: self.readers.iter().copied().collect(),
            holds: self
                .holds
                .iter()
                .map(|(owner, hold)| {
                    let hold = hold
                        .iter()
                        .map(|g| {
                            (
                                g.request,
                                g.mode,
                                g.deadline_ms,
                                g.since_ms,
                                g.revoked,
                                g.label.clone(),
                            )
                        })
                        .collect();
                    (*owner, hold)
                })
                .collect(),
            queue: self
                .queue
                .iter()
                .map(|((band, ticket, request), owner)| (*band as i64 - 1, *ticket, *request, *owner))
                .collect(),
            waiters: self
                .waiters
                .iter()
                .map(|(request, w)| {
                    (
                        *request,
                        (
                            w.owner,
                            w.mode,
                            w.lease_ms,
                            w.until_ms,
                            w.upgrade_of,
                            w.label.clone(),
                        ),
                    )
                })
                .collect(),
            waiting_of: self
                .waiting_of
                .iter()
                .map(|(owner, of)| (*owner, of.clone()))
                .collect(),
            last_ticket: self.last_ticket,
            marks: self
                .marks
                .iter()
                .filter(|(_, (_, until_ms))| *until_ms > now_us / 1000)
                .map(|(request, (ending, until_ms))| (*request, (ending.as_str(), *until_ms)))
                .collect(),
        }
    }
}
