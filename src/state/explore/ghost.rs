//! What the world outside of the machine knows: who asked for what, what it was told, and so what must be the case.
//!
//! The ghost never looks into the state, with one exception: a request whose place in line may be lost (its client was deaf, or gave no
//! sign of life for a claim) is taken as passed over when it is not in line any more.

use std::sync::LazyLock;

use super::super::{Context, EPOCH_US, LockState, Tuning};
use crate::protocol::{
    Acquire, Acquired, Answer, ClientId, Downgrade, Downgraded, Grant, Member, Mode, Name, Operation,
    OwnerId, Polled, Push, Release, Released, Renewal, Renewed, Reply, RequestId, Revoke, Withdraw,
    WithdrawnFrom,
};

/// Small, and so that ends of claims, leases and marks fall together and apart.
pub(super) const TUNING: Tuning = Tuning {
    claim_ms: 2,
    mark_ms: 6,
    retention_ms: 1000,
};
pub(super) const LEASE_MS: u64 = 4;
/// The machine is of one name, and does not look at it.
static NAME: LazyLock<Name> = LazyLock::new(|| Name::new("it").expect("a name"));
const START_MS: u64 = EPOCH_US / 1000 + 1_000_000;

/// The rules under test: [`LockState::apply`], or a mutant of it.
pub(super) type Machine = fn(&mut LockState, &Operation, &Context<'_>) -> (Answer, Vec<(ClientId, Push)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Released,
    Withdrawn,
    Lapsed,
    Revoked,
    Forgotten,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Waiting,
    Held,
    /// Held until the upgrade with this id took its place.
    Replaced(RequestId),
    /// Lost its place in line; its client may ask for it again.
    Passed,
    Over(Why),
}

/// One request, as its client and an onlooker know it.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub(super) id: RequestId,
    pub(super) owner: OwnerId,
    pub(super) asked: Mode,
    pub(super) wait: bool,
    pub(super) upgrade_of: Option<RequestId>,
    pub(super) standing: Standing,
    /// What it is held in, after downgrades.
    pub(super) mode: Mode,
    pub(super) fence: u64,
    pub(super) since_ms: u64,
    pub(super) deadline_ms: u64,
    pub(super) revoked: bool,
    /// Its place in line, as it was told.
    pub(super) ticket: u64,
    /// Until when the line must keep it.
    pub(super) sign_ms: u64,
    /// Since it got in line its client has heard everything and given signs of life.
    pub(super) faithful: bool,
    /// Write phases of others that began while it waited.
    pub(super) phases: u8,
    /// It has ended so that a late copy of its acquisition must be refused.
    pub(super) marked: bool,
    /// No copy of anything about it is under way after this.
    pub(super) quiet_ms: u64,
    /// Its release was sent, with or without a mark.
    pub(super) release_sent: Option<bool>,
    /// Its withdrawal was sent.
    pub(super) withdraw_sent: bool,
    pub(super) downgrade_sent: Option<Mode>,
    /// It was renewed, so its client knows that it holds.
    pub(super) renewed: bool,
    /// An upgrade of it was asked for.
    pub(super) upgrading: bool,
}

impl Past {
    pub(super) fn is_held(&self) -> bool {
        self.standing == Standing::Held
    }
    pub(super) fn is_waiting(&self) -> bool {
        self.standing == Standing::Waiting
    }
}

/// What may happen next. Indices are into [`World::pasts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// A new request.
    Ask {
        owner: u8,
        client: u8,
        mode: Mode,
        wait: bool,
    },
    /// A new request whose withdrawal arrives first.
    WithdrawFirst {
        owner: u8,
        client: u8,
        mode: Mode,
    },
    /// A new write request in the place of a held upgradable one.
    Upgrade {
        of: u8,
        wait: bool,
    },
    /// A copy of an acquisition; `place` is whether it claims the place that it had.
    AskAgain {
        at: u8,
        place: bool,
    },
    Release {
        at: u8,
        again: bool,
        mark: bool,
    },
    Downgrade {
        at: u8,
        to: Mode,
    },
    /// `undo`: turn it back into what it would upgrade.
    Withdraw {
        at: u8,
        undo: bool,
    },
    Renew {
        at: u8,
        fixed: bool,
    },
    Poll {
        at: u8,
    },
    /// Everything of a client that waits.
    PollAll {
        client: u8,
    },
    Revoke {
        owner: Option<u8>,
    },
    /// Does nothing but notice the time.
    Look,
    /// Time goes on.
    Pass {
        ms: u8,
    },
    /// A client becomes deaf, or hears again.
    Toggle {
        client: u8,
    },
    /// The server loses its data.
    Lose,
}

impl Action {
    /// The request that it is about, if that has been asked for.
    pub(super) fn about(mut self) -> Option<u8> {
        self.about_mut().copied()
    }

    pub(super) fn about_mut(&mut self) -> Option<&mut u8> {
        match self {
            Action::Upgrade { of: at, .. }
            | Action::AskAgain { at, .. }
            | Action::Release { at, .. }
            | Action::Downgrade { at, .. }
            | Action::Withdraw { at, .. }
            | Action::Renew { at, .. }
            | Action::Poll { at } => Some(at),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) now_ms: u64,
    pub(super) state: LockState,
    pub(super) deaf: [bool; 2],
    pub(super) pasts: Vec<Past>,
    /// The number of the next new request, whoever's it is.
    pub(super) next: u64,
    /// The highest fence that was ever told.
    pub(super) fence: u64,
    pub(super) lost: bool,
    /// Time has passed that the machine was not told of.
    pub(super) stale: bool,
}

/// One step, for the claims about steps.
pub(super) struct Step<'a> {
    pub(super) before: &'a World,
    pub(super) after: &'a World,
    pub(super) said: Option<Said>,
}

pub(super) struct Said {
    pub(super) operation: Operation,
    pub(super) reply: Reply,
    pub(super) pushes: Vec<(ClientId, Push)>,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            now_ms: START_MS,
            state: LockState::default(),
            deaf: [false; 2],
            pasts: Vec::new(),
            next: 1,
            fence: 0,
            lost: false,
            stale: false,
        }
    }

    pub(super) fn past(&self, id: RequestId) -> Option<&Past> {
        self.pasts.iter().find(|p| p.id == id)
    }

    fn past_mut(&mut self, id: RequestId) -> Option<&mut Past> {
        self.pasts.iter_mut().find(|p| p.id == id)
    }

    pub(super) fn is_deaf(&self, client: ClientId) -> bool {
        self.deaf[client.0 as usize - 1]
    }

    /// The strongest mode an owner holds.
    pub(super) fn held(&self, owner: OwnerId) -> Option<Mode> {
        let held = self.pasts.iter().filter(|p| p.owner == owner && p.is_held());
        held.map(|p| p.mode).max()
    }

    /// Whether an owner waits for more than to read.
    pub(super) fn waits_for_more(&self, owner: OwnerId) -> bool {
        let mut waiting = self.pasts.iter().filter(|p| p.owner == owner && p.is_waiting());
        waiting.any(|p| p.asked > Mode::Read)
    }

    /// Whether it waits and must not be passed over: it gave a sign of life in time, and what it would upgrade is there.
    pub(super) fn is_alive(&self, p: &Past) -> bool {
        let upgrades = p.upgrade_of.is_none_or(|from| {
            self.past(from)
                .is_some_and(|from| from.is_held() && !from.revoked)
        });
        p.is_waiting() && p.sign_ms > self.now_ms && upgrades
    }

    /// A release of what was told to be held, without a mark and with nobody in line, looks at nothing else: not at the time either. Who is
    /// in line and gave no sign of life is there until it is met.
    pub(super) fn is_quiet(&self, operation: &Operation) -> bool {
        let Operation::Release(op) = operation else {
            return false;
        };
        !op.mark
            && self.past(op.request).is_some_and(Past::is_held)
            && !self.pasts.iter().any(Past::is_waiting)
    }

    /// Whether what waits may have lost its place without being told.
    pub(super) fn is_doubtful(&self, p: &Past) -> bool {
        !self.is_alive(p) || self.is_deaf(p.id.client)
    }

    /// What the action says to the machine; `None` when it says nothing.
    fn operation(&mut self, action: Action) -> Option<Operation> {
        Some(match action {
            Action::Ask {
                owner,
                client,
                mode,
                wait,
            } => {
                let at = self.ask(owner_id(owner), client_id(client), mode, wait, None);
                Operation::Acquire(self.acquire(at, 0))
            }
            Action::WithdrawFirst { owner, client, mode } => {
                let at = self.ask(owner_id(owner), client_id(client), mode, true, None);
                self.pasts[at].withdraw_sent = true;
                Operation::Withdraw(self.withdrawal(at, false))
            }
            Action::Upgrade { of, wait } => {
                let of = &mut self.pasts[of as usize];
                of.upgrading = true;
                let (id, owner) = (of.id, of.owner);
                let at = self.ask(owner, id.client, Mode::Write, wait, Some(id));
                Operation::Acquire(self.acquire(at, 0))
            }
            Action::AskAgain { at, place } => {
                let ticket = if place { self.pasts[at as usize].ticket } else { 0 };
                Operation::Acquire(self.acquire(at as usize, ticket))
            }
            Action::Release { at, again, mark } => {
                let p = &mut self.pasts[at as usize];
                p.release_sent = Some(mark);
                Operation::Release(Release {
                    request: p.id,
                    owner: p.owner,
                    fence: p.fence,
                    again,
                    mark,
                })
            }
            Action::Downgrade { at, to } => {
                let p = &mut self.pasts[at as usize];
                p.downgrade_sent = Some(to);
                Operation::Downgrade(Downgrade {
                    request: p.id,
                    owner: p.owner,
                    fence: p.fence,
                    to,
                })
            }
            Action::Withdraw { at, undo } => {
                self.pasts[at as usize].withdraw_sent = true;
                Operation::Withdraw(self.withdrawal(at as usize, undo))
            }
            Action::Renew { at, fixed } => {
                let p = &mut self.pasts[at as usize];
                p.renewed = true;
                Operation::Renew(vec![Renewal {
                    name: NAME.clone(),
                    request: p.id,
                    owner: p.owner,
                    fence: p.fence,
                    lease_ms: LEASE_MS,
                    fixed,
                }])
            }
            Action::Poll { at } => {
                let p = &self.pasts[at as usize];
                Operation::Poll(vec![Member {
                    request: p.id,
                    owner: p.owner,
                }])
            }
            Action::PollAll { client } => Operation::Poll(
                self.pasts
                    .iter()
                    .filter(|p| p.is_waiting() && p.id.client == client_id(client))
                    .map(|p| Member {
                        request: p.id,
                        owner: p.owner,
                    })
                    .collect(),
            ),
            Action::Revoke { owner } => Operation::Revoke(Revoke {
                owner: owner.map(owner_id),
                granted_by_ms: self.now_ms,
            }),
            Action::Look => Operation::Inspect(8),
            Action::Pass { ms } => {
                self.now_ms += u64::from(ms);
                self.stale = true;
                return None;
            }
            Action::Toggle { client } => {
                self.deaf[client as usize] ^= true;
                return None;
            }
            Action::Lose => {
                self.lost = true;
                self.now_ms += 1;
                self.state = LockState::default();
                return None;
            }
        })
    }

    fn ask(
        &mut self,
        owner: OwnerId,
        client: ClientId,
        mode: Mode,
        wait: bool,
        upgrade_of: Option<RequestId>,
    ) -> usize {
        let id = RequestId {
            client,
            number: self.next,
        };
        self.next += 1;
        self.pasts.push(Past {
            id,
            owner,
            asked: mode,
            wait,
            upgrade_of,
            standing: Standing::Passed,
            mode,
            fence: 0,
            since_ms: 0,
            deadline_ms: 0,
            revoked: false,
            ticket: 0,
            sign_ms: 0,
            faithful: false,
            phases: 0,
            marked: false,
            quiet_ms: 0,
            release_sent: None,
            withdraw_sent: false,
            downgrade_sent: None,
            renewed: false,
            upgrading: false,
        });
        self.pasts.len() - 1
    }

    fn acquire(&self, at: usize, ticket: u64) -> Acquire {
        let p = &self.pasts[at];
        Acquire {
            request: p.id,
            owner: p.owner,
            mode: p.asked,
            wait: p.wait,
            first: false,
            lease_ms: LEASE_MS,
            ticket,
            upgrade_of: p.upgrade_of,
            label: String::new(),
        }
    }

    fn withdrawal(&self, at: usize, undo: bool) -> Withdraw {
        let p = &self.pasts[at];
        Withdraw {
            request: p.id,
            owner: p.owner,
            blame: false,
            upgrade_of: p.upgrade_of.filter(|_| undo),
        }
    }

    /// The world after an action, and what was said.
    pub(super) fn step(&self, action: Action, machine: Machine) -> (World, Option<Said>) {
        let mut world = self.clone();
        let said = world.operation(action).map(|operation| {
            let deaf = world.deaf;
            let heard = |client: ClientId| !deaf[client.0 as usize - 1];
            let context = Context {
                now_us: world.now_ms * 1000,
                tuning: TUNING,
                heard: &heard,
            };
            let (answer, pushes) = machine(&mut world.state, &operation, &context);
            Said {
                operation,
                reply: answer.reply,
                pushes,
            }
        });
        world.follow(self, said.as_ref());
        (world, said)
    }

    // -- what must be the case ----------------------------------------------------------------------------------

    fn follow(&mut self, before: &World, said: Option<&Said>) {
        if self.lost && !before.lost {
            for p in &mut self.pasts {
                p.marked = false;
                match p.standing {
                    Standing::Held | Standing::Replaced(_) => {
                        p.standing = Standing::Over(Why::Forgotten);
                        p.quiet_ms = self.now_ms + TUNING.mark_ms;
                    }
                    Standing::Waiting => p.standing = Standing::Passed,
                    Standing::Passed | Standing::Over(_) => {}
                }
            }
        }
        if let Some(said) = said {
            let quiet = before.is_quiet(&said.operation);
            self.stale &= quiet;
            let now_ms = self.now_ms;
            for p in self
                .pasts
                .iter_mut()
                .filter(|p| !quiet && p.is_held() && p.deadline_ms <= now_ms)
            {
                p.end(if p.revoked { Why::Revoked } else { Why::Lapsed }, true, now_ms);
            }
            // Whoever has come to only read leaves the line for more: as a lease ran out, or by what was said.
            let reads = |world: &World, p: &Past| {
                p.asked > Mode::Read && p.is_waiting() && world.held(p.owner) == Some(Mode::Read)
            };
            let left: Vec<RequestId> = self
                .pasts
                .iter()
                .filter(|p| reads(self, p))
                .map(|p| p.id)
                .collect();
            match &said.operation {
                Operation::Acquire(_) => {
                    self.follow_pushes(said);
                    self.follow_reply(said);
                }
                _ => {
                    self.follow_reply(said);
                    self.follow_pushes(said);
                }
            }
            for at in 0..self.pasts.len() {
                let p = &self.pasts[at];
                let may = left.contains(&p.id) || reads(self, p) || self.is_doubtful(p);
                if p.is_waiting() && may && !self.state.waiters.contains_key(&p.id) {
                    self.pasts[at].standing = Standing::Passed;
                }
            }
        }
        self.watch_phases(before);
        let (now_ms, deaf) = (self.now_ms, self.deaf);
        for p in &mut self.pasts {
            p.faithful &= p.is_waiting() && p.sign_ms > now_ms && !deaf[p.id.client.0 as usize - 1];
            if !p.is_waiting() {
                p.phases = 0;
            }
        }
        // What nothing can be said about any more is forgotten.
        let over: Vec<RequestId> = self
            .pasts
            .iter()
            .filter(|p| matches!(p.standing, Standing::Over(_)) && p.quiet_ms <= now_ms)
            .map(|p| p.id)
            .collect();
        self.pasts.retain(|p| {
            let never = p.standing == Standing::Passed && (p.ticket == 0 || !p.wait);
            !(over.contains(&p.id)
                || never
                || matches!(p.standing, Standing::Replaced(by) if over.contains(&by)))
        });
    }

    fn granted(&mut self, request: RequestId, grant: &Grant, lease_ms: u64) {
        let now_ms = self.now_ms;
        let Some(p) = self.past_mut(request) else { return };
        if matches!(p.standing, Standing::Held | Standing::Replaced(_))
            || (matches!(p.standing, Standing::Over(_)) && p.marked)
        {
            return;
        }
        p.standing = Standing::Held;
        p.mode = p.asked;
        p.fence = grant.fence;
        p.since_ms = now_ms;
        p.deadline_ms = now_ms + lease_ms;
        p.revoked = false;
        p.marked = false;
        p.ticket = 0;
        let from = p.upgrade_of;
        self.fence = self.fence.max(grant.fence);
        if let Some(from) = from
            && let Some(replaced) = self.past_mut(from)
            && replaced.is_held()
        {
            replaced.standing = Standing::Replaced(request);
            replaced.quiet_ms = now_ms + TUNING.mark_ms;
            let deadline_ms = replaced.deadline_ms;
            if let Some(p) = self.past_mut(request) {
                p.deadline_ms = p.deadline_ms.max(deadline_ms);
            }
        }
    }

    fn follow_pushes(&mut self, said: &Said) {
        for (_, push) in &said.pushes {
            if let Push::Granted { grants, .. } = push {
                for (request, grant) in grants {
                    self.granted(*request, grant, LEASE_MS.min(TUNING.claim_ms));
                }
            }
        }
    }

    fn follow_reply(&mut self, said: &Said) {
        let now_ms = self.now_ms;
        match (&said.operation, &said.reply) {
            (Operation::Acquire(op), Reply::Acquire(reply)) => match reply {
                Acquired::Granted(grant) => self.granted(op.request, grant, LEASE_MS),
                Acquired::Queued { ticket, .. } => {
                    let deaf = self.is_deaf(op.request.client);
                    if let Some(p) = self.past_mut(op.request)
                        && (!matches!(p.standing, Standing::Over(_)) || !p.marked)
                    {
                        if !p.is_waiting() {
                            p.faithful = !deaf;
                        }
                        p.standing = Standing::Waiting;
                        p.ticket = *ticket;
                        p.sign_ms = now_ms + TUNING.claim_ms;
                    }
                }
                Acquired::Busy | Acquired::Refused | Acquired::Ended(_) => {
                    if let Some(p) = self.past_mut(op.request)
                        && matches!(p.standing, Standing::Waiting | Standing::Passed)
                    {
                        p.standing = Standing::Passed;
                        p.ticket = 0;
                    }
                }
            },
            (Operation::Release(op), Reply::Release(reply)) => {
                if let Some(p) = self.past_mut(op.request) {
                    if p.is_held() && *reply == Released::Released {
                        p.end(Why::Released, op.mark, now_ms);
                    } else if op.mark {
                        p.marked = true;
                    }
                }
            }
            (Operation::Downgrade(op), Reply::Downgrade(Downgraded::Downgraded(_))) => {
                if let Some(p) = self.past_mut(op.request) {
                    p.mode = p.mode.min(op.to);
                }
            }
            (Operation::Renew(ops), Reply::Renew(replies)) => {
                for (op, reply) in ops.iter().zip(replies) {
                    if let Some(p) = self.past_mut(op.request)
                        && matches!(reply, Renewed::Renewed { .. })
                    {
                        let from_ms = if op.fixed { p.since_ms } else { now_ms };
                        p.deadline_ms = p.deadline_ms.max(from_ms + op.lease_ms);
                    }
                }
            }
            (Operation::Withdraw(op), Reply::Withdraw(_)) => {
                let Some(p) = self.past_mut(op.request) else {
                    return;
                };
                let was = p.clone();
                p.end(Why::Withdrawn, true, now_ms);
                if was.is_held()
                    && let Some(from) = op.upgrade_of
                    && let Some(from) = self.past_mut(from)
                    && from.standing == Standing::Replaced(op.request)
                    && !from.marked
                {
                    from.standing = Standing::Held;
                    from.deadline_ms = was.deadline_ms;
                    from.since_ms = was.since_ms;
                    from.revoked = was.revoked;
                }
            }
            (Operation::Poll(members), Reply::Poll(replies)) => {
                for (member, reply) in members.iter().zip(replies) {
                    if let Some(p) = self.past_mut(member.request)
                        && matches!(reply, Polled::Queued { .. })
                    {
                        p.sign_ms = now_ms + TUNING.claim_ms;
                    }
                }
            }
            (Operation::Revoke(op), Reply::Revoke(_)) => {
                for p in &mut self.pasts {
                    p.revoked |= p.is_held()
                        && p.since_ms <= op.granted_by_ms
                        && op.owner.is_none_or(|owner| p.owner == owner);
                }
            }
            _ => {}
        }
    }

    fn watch_phases(&mut self, before: &World) {
        let began = write_phases(before, self).1;
        let more: Vec<OwnerId> = self
            .pasts
            .iter()
            .map(|p| p.owner)
            .filter(|o| self.waits_for_more(*o))
            .collect();
        for p in &mut self.pasts {
            let waited = before.past(p.id).is_some_and(Past::is_waiting) && !more.contains(&p.owner);
            if p.is_waiting() && waited && began.is_some_and(|owner| owner != p.owner) {
                p.phases = p.phases.saturating_add(1);
            }
            // What its owner waits for besides kept it from entering; so its turn is counted from when that has ended.
            if more.contains(&p.owner) {
                p.phases = 0;
            }
        }
    }
}

impl Past {
    fn end(&mut self, why: Why, marked: bool, now_ms: u64) {
        if !matches!(self.standing, Standing::Over(_)) {
            self.standing = Standing::Over(why);
            self.quiet_ms = now_ms + TUNING.mark_ms;
        }
        self.marked |= marked;
        self.ticket = 0;
    }
}

/// Whose write phase ended in a step, and whose began.
pub(super) fn write_phases(before: &World, after: &World) -> (Option<OwnerId>, Option<OwnerId>) {
    let writes = |p: &Past| p.is_held() && p.mode == Mode::Write;
    let was = before.pasts.iter().find(|p| writes(p)).map(|p| p.owner);
    let is = after.pasts.iter().find(|p| writes(p)).map(|p| p.owner);
    let goes_on = before
        .pasts
        .iter()
        .filter(|p| writes(p))
        .any(|p| after.past(p.id).is_some_and(writes))
        // A re-entry before the last of them ended.
        || (was.is_some() && was == is);
    let ended = was.filter(|_| !goes_on);
    let began = is.filter(|_| !goes_on);
    (ended, began)
}

pub(super) fn owner_id(n: u8) -> OwnerId {
    OwnerId(uuid::Uuid::from_u128(u128::from(n) + 1))
}

pub(super) fn client_id(n: u8) -> ClientId {
    ClientId(u64::from(n) + 1)
}

pub(super) fn withdrawn_from(p: &Past) -> WithdrawnFrom {
    match p.standing {
        Standing::Held => WithdrawnFrom::Held,
        Standing::Waiting => WithdrawnFrom::Queued,
        _ => WithdrawnFrom::Absent,
    }
}
