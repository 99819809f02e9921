//! Requests in line, and how each learns what became of it.
//!
//! A push says so at once. A push is a hint and may be lost, so everything here is also polled: a few times per claim, which is
//! at the same time the sign of life that keeps a place in line; at once when the link was made anew; and, by the first in line, when the earliest
//! lease in its way lapses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::backend::{Failure, Heard, Told};
use crate::clock::Moment;
use crate::config::Backoff;
use crate::core::Core;
use crate::error::{Error, ErrorKind};
use crate::observe::{self, Flow};
use crate::owner::Owner;
use crate::protocol::{
    Call, Ending, Grant, Ids, MAX_BATCH, Member, Mode, Name, Operation, Polled, Reply, RequestId,
};
use crate::watchdog::{Granting, Held, Keep};

/// What became of a request in line.
#[derive(Debug)]
pub(crate) enum Outcome {
    Granted(Arc<Held>),
    /// The server does not have it in line any more: ask again.
    Gone(Ending),
    /// The server could not be asked for too long, or says no.
    Failed(Error),
}

/// What a request would hold.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) name: Name,
    pub(crate) member: Member,
    pub(crate) mode: Mode,
    /// Who waits for it: see [`Flow`].
    pub(crate) flow: Option<Flow>,
    pub(crate) keep: Keep,
    pub(crate) label: String,
    pub(crate) upgrade_of: Option<RequestId>,
    /// Before it was first sent.
    pub(crate) asked: Moment,
    /// It has a timeout of its own, and waits for that.
    pub(crate) patient: bool,
    /// It is polled with this back-off.
    pub(crate) spin: Option<Backoff>,
}

impl Wanted {
    /// Warns if it waits for a hold of its own flow.
    pub(crate) fn warn_of_itself(&self, core: &Core) {
        let owner = Owner::from_id(self.member.owner);
        let flow = self.flow;
        if let Some(held) = flow.and_then(|flow| core.watchdog.of_flow(&self.name, flow, &owner)) {
            observe::waits_for_itself(self.name.as_str(), self.mode, &owner, &held);
        }
    }
}

#[derive(Default)]
pub(crate) struct Waiters {
    line: Mutex<Line>,
    sooner: Notify,
}

#[derive(Default)]
struct Line {
    slots: Ids<RequestId, Slot>,
    agenda: BTreeSet<(Moment, RequestId)>,
    asleep_until: Option<Moment>,
    /// The client ends: nobody gets in line any more.
    closed: bool,
    rounds: u64,
}

struct Slot {
    wanted: Wanted,
    tell: oneshot::Sender<Outcome>,
    /// When to poll it; far while it is not known to be in line.
    poll_at: Moment,
    /// Polls since the last answer, and when the first of them was made.
    unanswered: u32,
    /// Answers that said that it is in line.
    answered: u32,
    asking_since: Moment,
    /// It was polled before.
    polled: bool,
    /// Which of the slots of this request it is: a late answer to a poll of an earlier one says nothing of it.
    round: u64,
}

impl Line {
    fn schedule(&mut self, request: RequestId, poll_at: Moment) {
        if let Some(slot) = self.slots.get_mut(&request) {
            self.agenda.remove(&(slot.poll_at, request));
            slot.poll_at = poll_at;
            self.agenda.insert((poll_at, request));
        }
    }

    /// Unless it has got another slot in the meantime.
    fn strike(&mut self, request: RequestId, round: u64) -> Option<Slot> {
        self.slots.get(&request).filter(|slot| slot.round == round)?;
        self.remove(request)
    }

    fn remove(&mut self, request: RequestId) -> Option<Slot> {
        let slot = self.slots.remove(&request)?;
        self.agenda.remove(&(slot.poll_at, request));
        Some(slot)
    }
}

/// A request that is polled, and the slot that it is polled for.
#[derive(Clone, Copy)]
struct Polling {
    member: Member,
    round: u64,
}

impl Waiters {
    /// Before the request is sent: its grant may come before its reply. Fails when the client ends: whatever is expected before
    /// that is withdrawn by [`fail_all`](Self::fail_all), and nothing is sent after it.
    pub(crate) fn expect(&self, wanted: Wanted) -> Result<oneshot::Receiver<Outcome>, Error> {
        let (tell, told) = oneshot::channel();
        let request = wanted.member.request;
        let mut line = self.line.lock();
        if line.closed {
            return Err(ErrorKind::Closed.into());
        }
        line.rounds += 1;
        let slot = Slot {
            wanted,
            tell,
            poll_at: Moment::FAR,
            unanswered: 0,
            answered: 0,
            asking_since: Moment::FAR,
            polled: false,
            round: line.rounds,
        };
        line.slots.insert(request, slot);
        line.schedule(request, Moment::FAR);
        Ok(told)
    }

    /// A reply: it is granted. `None` when it has been told something else in the meantime.
    pub(crate) fn keep(&self, core: &Core, grant: Granting) -> Option<Arc<Held>> {
        let mut line = self.line.lock();
        line.remove(grant.member.request)?;
        // Under the mutex: a client that ends has either failed it or finds it with the watchdog.
        Some(core.watchdog.keep(core, grant))
    }

    /// It is in line, says the reply to its acquisition. `wake_ms` is when the first in line should look again.
    pub(crate) fn queued(&self, core: &Core, request: RequestId, heard: &Heard, wake_ms: u64) {
        self.in_line(core, request, None, heard, wake_ms);
    }

    /// Who waits in line for it.
    pub(crate) fn waits(&self, request: RequestId, flow: Option<Flow>) {
        if let Some(slot) = self.line.lock().slots.get_mut(&request) {
            slot.wanted.flow = flow;
        }
    }

    /// The same, said by a poll for a slot: it is nothing to a later one, whose acquisition is still under way.
    fn in_line(&self, core: &Core, request: RequestId, round: Option<u64>, heard: &Heard, wake_ms: u64) {
        let now = core.clock.now();
        // Counted from when it was asked: the server counts its sign of life from not long after.
        let mut line = self.line.lock();
        let slot = match line.slots.get_mut(&request) {
            Some(slot) if round.is_none_or(|round| round == slot.round) => slot,
            _ => return,
        };
        slot.unanswered = 0;
        let rhythm = rhythm(core, now.since(slot.wanted.asked));
        let mut poll_at = heard.sent.plus(rhythm).max(now.plus(LATER));
        if let Some(spin) = slot.wanted.spin {
            poll_at = poll_at.min(now.plus(spin.rest(slot.answered)));
        }
        slot.answered = slot.answered.saturating_add(1);
        if let Some(now_us) = heard.answer.now_us
            && wake_ms > 0
        {
            let left = wake_ms.saturating_mul(1000).saturating_sub(now_us);
            // A moment later than the lease ends there, as seen from here; never in a tight loop.
            let wake = now.plus(Duration::from_micros(left) + LATER);
            poll_at = poll_at.min(wake);
        }
        line.schedule(request, poll_at);
        let wake = line.asleep_until.is_some_and(|until| poll_at < until);
        if wake {
            line.asleep_until = None;
        }
        drop(line);
        if wake {
            self.sooner.notify_one();
        }
    }

    #[cfg(any(test, feature = "cli"))]
    pub(crate) fn is_empty(&self) -> bool {
        self.line.lock().slots.is_empty()
    }

    /// Nobody waits for it any more.
    pub(crate) fn forget(&self, request: RequestId) {
        self.line.lock().remove(request);
    }

    /// A push: it is granted. For a request that nobody waits for any more its withdrawal is already under way.
    pub(crate) fn granted(
        &self,
        core: &Core,
        request: RequestId,
        grant: Grant,
        now_us: u64,
        told: Option<Told>,
    ) {
        let mut line = self.line.lock();
        if let Some(slot) = line.remove(request) {
            let until = core.deadline_by_push(slot.wanted.asked, told, now_us, grant.deadline_ms);
            Self::tell(core, slot, grant, until);
        }
    }

    /// Under the mutex, as [`keep`](Self::keep).
    fn tell(core: &Core, slot: Slot, grant: Grant, until: Moment) {
        let held = core.watchdog.keep(
            core,
            Granting {
                name: slot.wanted.name.clone(),
                member: slot.wanted.member,
                fence: grant.fence,
                depth: grant.depth,
                keep: slot.wanted.keep,
                label: slot.wanted.label.clone(),
                upgrade_of: slot.wanted.upgrade_of,
                resent: false,
                until,
                claimed: true,
            },
        );
        // A future that is being dropped withdraws the request by itself.
        let _ = slot.tell.send(Outcome::Granted(held));
    }

    /// Withdraws everything.
    pub(crate) fn fail_all(&self, core: &Core, error: &Error) {
        // In an order that does not hang on a hasher.
        let slots: BTreeMap<RequestId, Slot> = {
            let mut line = self.line.lock();
            line.closed = true;
            line.agenda.clear();
            line.slots.drain().collect()
        };
        for slot in slots.into_values() {
            let Wanted {
                name,
                member,
                keep,
                upgrade_of,
                ..
            } = &slot.wanted;
            core.reaper
                .withdraw(core, name, *member, *upgrade_of, keep.lease, None);
            let _ = slot.tell.send(Outcome::Failed(error.clone()));
        }
    }

    /// Pushes may have been missed: ask about everything that is in line on the names concerned.
    pub(crate) fn recheck(&self, core: &Core, concerned: impl Fn(&Name) -> bool) {
        let now = core.clock.now();
        let mut line = self.line.lock();
        let queued: Vec<RequestId> = line
            .slots
            .iter()
            .filter(|(_, slot)| slot.poll_at != Moment::FAR && concerned(&slot.wanted.name))
            .map(|(request, _)| *request)
            .collect();
        for request in queued {
            line.schedule(request, now);
        }
        drop(line);
        self.sooner.notify_one();
    }

    /// Every poll was answered, and the next is planned.
    #[cfg(test)]
    pub(crate) fn has_planned(&self) -> bool {
        self.line.lock().slots.values().all(|slot| slot.unanswered == 0)
    }

    /// Until the client ends.
    pub(crate) async fn run(&self, core: &Core) {
        let mut polls = FuturesUnordered::new();
        loop {
            let (batches, wake) = self.due(core);
            polls.extend(
                batches
                    .into_iter()
                    .map(|(name, polling)| self.poll(core, name, polling)),
            );
            tokio::select! {
                biased;
                () = core.clock.sleep_until(wake) => {}
                () = self.sooner.notified() => {}
                Some(()) = polls.next() => {}
            }
        }
    }

    fn due(&self, core: &Core) -> (Vec<(Name, Vec<Polling>)>, Moment) {
        let now = core.clock.now();
        let mut by_name: BTreeMap<Name, Vec<Polling>> = BTreeMap::new();
        let mut given_up = Vec::new();
        let mut waited = Vec::new();
        let mut line = self.line.lock();
        while let Some(&(at, request)) = line.agenda.first()
            && at <= now
        {
            let Some(slot) = line.slots.get_mut(&request) else {
                line.agenda.pop_first();
                continue;
            };
            // After two tries: time alone also passes while a process is stopped.
            if !slot.wanted.patient
                && slot.unanswered >= 2
                && now.since(slot.asking_since) > core.config.patience
            {
                given_up.extend(line.remove(request));
                continue;
            }
            if slot.unanswered == 0 {
                slot.asking_since = now;
            }
            slot.unanswered += 1;
            if !std::mem::replace(&mut slot.polled, true) {
                waited.push(slot.wanted.clone());
            }
            by_name
                .entry(slot.wanted.name.clone())
                .or_default()
                .push(Polling {
                    member: slot.wanted.member,
                    round: slot.round,
                });
            // While the poll is under way; it plans the next.
            line.schedule(request, now.plus(core.config.claim / 3));
        }
        let wake = line.agenda.first().map_or(Moment::FAR, |(at, _)| *at);
        line.asleep_until = Some(wake);
        drop(line);
        // Whoever waits until the first poll has waited for a while.
        for wanted in waited {
            wanted.warn_of_itself(core);
        }
        for slot in given_up {
            let error = core.unreachable(&slot.wanted.name);
            let _ = slot.tell.send(Outcome::Failed(error));
        }
        let batches = by_name
            .into_iter()
            .flat_map(|(name, polling)| {
                polling
                    .chunks(MAX_BATCH)
                    .map(|chunk| (name.clone(), chunk.to_vec()))
                    .collect::<Vec<_>>()
            })
            .collect();
        (batches, wake)
    }

    async fn poll(&self, core: &Core, name: Name, polling: Vec<Polling>) {
        let call = Call {
            name,
            operation: Operation::Poll(polling.iter().map(|p| p.member).collect()),
        };
        // A poll that waits for a link is overtaken by the next. It outlives the time in which a dead link is found, as it may be
        // what finds it.
        let bound = core.config.response_timeout + core.config.claim / 3;
        let outcome = tokio::select! {
            biased;
            outcome = core.backend.call(&call) => outcome,
            () = core.clock.sleep_until(core.clock.now().plus(bound)) => return,
        };
        match outcome {
            Ok(heard) => {
                core.hear(&heard);
                let Reply::Poll(replies) = &heard.answer.reply else {
                    return;
                };
                for (Polling { member, round }, reply) in polling.iter().zip(replies) {
                    match *reply {
                        Polled::Queued { wake_ms } => {
                            self.in_line(core, member.request, Some(*round), &heard, wake_ms);
                        }
                        Polled::Granted(grant) => {
                            let mut line = self.line.lock();
                            if let Some(slot) = line.remove(member.request) {
                                Self::tell(core, slot, grant, core.deadline(&heard, grant.deadline_ms));
                            }
                        }
                        Polled::NotHeld(ending) => {
                            if let Some(slot) = self.line.lock().strike(member.request, *round) {
                                let _ = slot.tell.send(Outcome::Gone(ending));
                            }
                        }
                    }
                }
            }
            Err(Failure::No(error)) => {
                for Polling { member, round } in &polling {
                    if let Some(slot) = self.line.lock().strike(member.request, *round) {
                        let _ = slot.tell.send(Outcome::Failed(error.clone()));
                    }
                }
            }
            Err(Failure::Unknown(error)) => {
                tracing::debug!(name = %call.name, %error, "a poll was not answered");
                let soon = core.clock.now().plus(LATER * 20);
                let mut line = self.line.lock();
                for Polling { member, round } in &polling {
                    // A later slot is not polled before its acquisition is answered: it would look as if it had gone.
                    if line
                        .slots
                        .get(&member.request)
                        .is_some_and(|slot| slot.round == *round)
                    {
                        line.schedule(member.request, soon);
                    }
                }
            }
        }
    }
}

/// How often a request in line is asked about: that is its sign of life. Where no pushes come it is also the only way to a grant, so there
/// it is asked about the more often the shorter it has waited: whoever waits long bears an eighth more.
fn rhythm(core: &Core, waited: Duration) -> Duration {
    let alive = core.config.claim / 3;
    if core.backend.pushes() {
        alive
    } else {
        (waited / 8).clamp(UNPUSHED.0, UNPUSHED.1).min(alive)
    }
}

/// Without pushes, how often at most and at least.
const UNPUSHED: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// How much later than a lease ends it is looked at.
const LATER: Duration = Duration::from_millis(2);
