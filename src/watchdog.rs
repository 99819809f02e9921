//! Renews the leases of a client's holds, and tells their guards what became of them.
//!
//! The invariant: a [`Held`] says that it is held only while no server could have given the lock away. Its validity is counted on
//! our own clock from before the request was sent, less an allowance for clocks that drift (1 % and 2 ms, as in Redis'
//! description of Redlock). It only ever ends; what the server says can move the end out, or make it now.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::backend::Failure;
use crate::clock::{Clock, Moment};
use crate::core::Core;
use crate::error::{Error, ErrorKind, LostCause};
use crate::observe::{self, End, Flow, Life, Renewals};
use crate::owner::Owner;
use crate::protocol::{
    Call, Ending, Ids, Member, Mode, Name, Operation, Renewal, Renewed, Replicas, Reply, RequestId, millis,
};

/// What is taken off a lease so that it ends here before it ends there.
pub(crate) fn margin(lease: Duration) -> Duration {
    lease / 100 + Duration::from_millis(2)
}

/// How a hold is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    pub(crate) lease: Duration,
    /// Nothing renews it.
    pub(crate) fixed: bool,
    pub(crate) max_hold: Option<Duration>,
    /// When it is revoked its guard gives it back, and nobody before it.
    pub(crate) until_dropped: bool,
    /// The cap of the hold that this one goes on from, if it does.
    pub(crate) cap: Moment,
    /// Who must know of it besides.
    pub(crate) replicas: Option<Replicas>,
}

/// A granted request, as its client knows it. Shared by its guard, the watchdog and everybody who waits for its end.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) name: Name,
    pub(crate) member: Member,
    pub(crate) fence: u64,
    depth: AtomicU64,
    pub(crate) keep: Keep,
    pub(crate) label: String,
    /// The hold that it was made from.
    upgrade_of: Option<RequestId>,
    /// When we learnt that it was granted.
    pub(crate) granted: Moment,
    /// From when its guard has it until it ends, for whoever watches.
    life: Mutex<Option<Life>>,
    /// Its lease reaches to the cap: when it ends, that is why.
    capped: AtomicBool,
    /// Its release must leave a mark.
    marked: AtomicBool,
    /// A call is under way that gives it back or makes it another request: that the server does not know it says nothing.
    in_doubt: AtomicBool,
    /// Its guard gave it back, or handed it on: it can't be lost any more.
    given_back: AtomicBool,
    /// `max_hold` from when it was granted.
    pub(crate) cap: Moment,
    /// Valid until then, in nanoseconds of the client's clock.
    until: AtomicU64,
    end: Mutex<Option<LostCause>>,
    ended: Notify,
}

impl Held {
    pub(crate) fn until(&self) -> Moment {
        Moment(Duration::from_nanos(self.until.load(Ordering::Acquire)))
    }

    pub(crate) fn depth(&self) -> u64 {
        self.depth.load(Ordering::Acquire)
    }

    pub(crate) fn set_depth(&self, depth: u64) {
        self.depth.store(depth, Ordering::Release);
    }

    pub(crate) fn owner(&self) -> Owner {
        Owner::from_id(self.member.owner)
    }

    /// Its guard has it.
    pub(crate) fn begin(&self, life: Life) {
        *self.life.lock() = Some(life);
    }

    /// In which mode its guard has it.
    pub(crate) fn mode(&self) -> Option<Mode> {
        self.life.lock().as_ref().map(|life| life.mode)
    }

    /// It goes on in another mode.
    pub(crate) fn turn(&self, mode: Mode, clock: &Clock) {
        let life = self.life.lock().take();
        // Not under the mutex: who watches may ask for the mode.
        if let Some(life) = life {
            self.begin(life.turned(mode, self, clock));
        }
    }

    fn end_life(&self, otherwise: End, clock: &Clock) {
        let life = self.life.lock().take();
        if let Some(life) = life {
            life.end(|| self.end.lock().map_or(otherwise, End::Lost), clock);
        }
    }

    pub(crate) fn give_back(&self, clock: &Clock) {
        self.given_back.store(true, Ordering::Release);
        self.end_life(End::Released, clock);
    }

    fn is_capped(&self) -> bool {
        self.capped.load(Ordering::Acquire) || self.until() >= self.cap
    }

    pub(crate) fn is_marked(&self) -> bool {
        self.marked.load(Ordering::Acquire)
    }

    pub(crate) fn mark(&self) {
        self.marked.store(true, Ordering::Release);
    }

    /// While one is under way, or is being undone.
    fn is_in_doubt(&self, core: &Core) -> bool {
        // Only what was upgraded, or tried to be, is marked.
        self.in_doubt.load(Ordering::Acquire)
            || (self.is_marked() && core.reaper.is_undoing(self.member.request))
    }

    pub(crate) fn doubt(&self, in_doubt: bool) {
        self.in_doubt.store(in_doubt, Ordering::Release);
    }

    /// Unless it has run out by now: what has ended stays ended.
    fn push_out(&self, now: Moment, until: Moment) {
        let (now, until) = (nanos(now), nanos(until.min(self.cap)));
        let _ = self
            .until
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
                (old > now && until > old).then_some(until)
            });
    }

    /// How it ended, if it has.
    pub(crate) fn end(&self, now: Moment) -> Option<LostCause> {
        if let Some(cause) = *self.end.lock() {
            return Some(cause);
        }
        (self.until() <= now).then_some(if self.is_capped() {
            LostCause::MaxHold
        } else {
            LostCause::Lapsed
        })
    }

    /// Ends it, once. Tells whether this call did.
    fn finish(&self, cause: LostCause, clock: &Clock) -> bool {
        let mut end = self.end.lock();
        let first = end.is_none();
        end.get_or_insert(cause);
        drop(end);
        self.ended.notify_waiters();
        self.end_life(End::Lost(cause), clock);
        first
    }

    /// Resolves when the hold has been lost. Cancel safe.
    ///
    /// It looks at the clock whenever it is polled: a process that was stopped must not do another step of its work before the
    /// watchdog has had its turn.
    pub(crate) async fn lost(&self, core: &Core) -> LostCause {
        let mut ended = std::pin::pin!(self.ended.notified());
        std::future::poll_fn(|cx| {
            loop {
                // Enrol first, look afterwards: an end in between is not missed.
                let notified = ended.as_mut().poll(cx).is_ready();
                if !self.given_back.load(Ordering::Acquire)
                    && let Some(cause) = self.end(core.clock.now())
                {
                    return Poll::Ready(cause);
                }
                if !notified {
                    return Poll::Pending;
                }
                ended.set(self.ended.notified());
            }
        })
        .await
    }

    pub(crate) fn lost_error(&self, cause: LostCause) -> Error {
        ErrorKind::Lost {
            name: self.name.as_str().into(),
            cause,
        }
        .into()
    }
}

/// The holds of a client, by when something must be done about them.
#[derive(Default)]
pub(crate) struct Watchdog {
    holds: Mutex<Holds>,
    /// Something is due sooner than the watchdog sleeps.
    sooner: Notify,
}

#[derive(Default)]
struct Holds {
    kept: Ids<RequestId, Kept>,
    agenda: BTreeSet<(Moment, RequestId)>,
    /// Until when the watchdog sleeps; nothing before that needs to wake it.
    asleep_until: Option<Moment>,
}

struct Kept {
    held: Arc<Held>,
    /// When to renew it; far when never.
    renew_at: Moment,
    /// A renewal is under way.
    renewing: bool,
    at: Moment,
}

impl Kept {
    fn next(&self) -> Moment {
        if self.renewing {
            self.held.until()
        } else {
            self.renew_at.min(self.held.until())
        }
    }
}

impl Holds {
    fn schedule(&mut self, request: RequestId) {
        if let Some(kept) = self.kept.get_mut(&request) {
            self.agenda.remove(&(kept.at, request));
            kept.at = kept.next();
            self.agenda.insert((kept.at, request));
        }
    }

    fn remove(&mut self, request: RequestId) -> Option<Kept> {
        let kept = self.kept.remove(&request)?;
        self.agenda.remove(&(kept.at, request));
        Some(kept)
    }
}

impl Watchdog {
    /// Takes a granted request in. `until` is when its lease ends on our clock; `claimed` says that it lasts for a claim only
    /// until it is renewed.
    pub(crate) fn keep(&self, core: &Core, grant: Granting) -> Arc<Held> {
        let now = core.clock.now();
        let cap = grant
            .keep
            .max_hold
            .map_or(Moment::FAR, |max| now.plus(max))
            .min(grant.keep.cap);
        let held = Arc::new(Held {
            name: grant.name,
            member: grant.member,
            fence: grant.fence,
            depth: AtomicU64::new(grant.depth),
            keep: grant.keep,
            label: grant.label,
            upgrade_of: grant.upgrade_of,
            granted: now,
            life: Mutex::new(None),
            capped: AtomicBool::new(cap.since(now) <= grant.keep.lease),
            given_back: AtomicBool::new(false),
            marked: AtomicBool::new(grant.resent),
            in_doubt: AtomicBool::new(false),
            cap,
            until: AtomicU64::new(nanos(grant.until.min(cap))),
            end: Mutex::new(None),
            ended: Notify::new(),
        });
        let renew_at = if grant.keep.fixed && !grant.claimed {
            Moment::FAR
        } else {
            let first = if grant.claimed {
                grant.keep.lease.min(core.config.claim)
            } else {
                grant.keep.lease
            };
            // A late answer leaves less than that.
            now.plus(rhythm(core, first.min(held.until().since(now))))
        };
        let mut holds = self.holds.lock();
        let kept = Kept {
            held: held.clone(),
            renew_at,
            renewing: false,
            at: Moment::FAR,
        };
        holds.kept.insert(grant.member.request, kept);
        holds.schedule(grant.member.request);
        let wake = holds
            .agenda
            .first()
            .is_some_and(|(at, _)| holds.asleep_until.is_some_and(|until| *at < until));
        if wake {
            holds.asleep_until = None;
        }
        drop(holds);
        if wake {
            self.sooner.notify_one();
        }
        held
    }

    /// A hold of this name that this flow acquired as another owner.
    pub(crate) fn of_flow(&self, name: &Name, flow: Flow, owner: &Owner) -> Option<Arc<Held>> {
        let holds = self.holds.lock();
        let mut helds = holds.kept.values().map(|kept| &kept.held);
        let of_flow = |held: &&Arc<Held>| {
            held.name == *name
                && held.member.owner != owner.id()
                && held.life.lock().as_ref().is_some_and(|life| life.flow == flow)
        };
        helds.find(of_flow).cloned()
    }

    /// The guard has given it back, or hands it on.
    pub(crate) fn forget(&self, request: RequestId) {
        self.holds.lock().remove(request);
    }

    #[cfg(any(test, feature = "cli"))]
    pub(crate) fn is_empty(&self) -> bool {
        self.holds.lock().kept.is_empty()
    }

    /// Ends a hold: its guard is told first, then the server is told that it may go on.
    pub(crate) fn lose(&self, core: &Core, request: RequestId, cause: LostCause) {
        let (kept, from) = {
            let mut holds = self.holds.lock();
            let kept = holds.remove(request);
            // An upgrade that its guard has not taken yet: what it was made from is in it, and goes back with it.
            let from = kept.as_ref().and_then(|kept| kept.held.upgrade_of);
            (kept, from.and_then(|from| holds.remove(from)))
        };
        if let Some(kept) = kept
            && kept.held.finish(cause, &core.clock)
        {
            if let Some(from) = from {
                from.held.finish(cause, &core.clock);
            }
            observe::lost(&kept.held, cause);
            if cause == LostCause::Revoked && kept.held.keep.until_dropped {
                return;
            }
            core.reaper.release(core, &kept.held);
        }
    }

    pub(crate) fn lose_all(&self, core: &Core, cause: LostCause) {
        // In an order that does not hang on a hasher.
        let all: BTreeSet<RequestId> = self.holds.lock().kept.keys().copied().collect();
        for request in all {
            self.lose(core, request, cause);
        }
    }

    /// The server may have changed: ask at once about everything on the names concerned.
    pub(crate) fn recheck(&self, core: &Core, concerned: impl Fn(&Name) -> bool) {
        let now = core.clock.now();
        let mut holds = self.holds.lock();
        let all: Vec<RequestId> = holds
            .kept
            .iter()
            .filter(|(_, kept)| concerned(&kept.held.name))
            .map(|(request, _)| *request)
            .collect();
        for request in all {
            if let Some(kept) = holds.kept.get_mut(&request) {
                kept.renew_at = now;
            }
            holds.schedule(request);
        }
        drop(holds);
        self.sooner.notify_one();
    }

    /// Until the client ends.
    pub(crate) async fn run(&self, core: &Core) {
        let mut renewals = FuturesUnordered::new();
        self.begin_again();
        loop {
            let (batches, wake) = self.due(core);
            renewals.extend(batches.into_iter().map(|batch| self.renew(core, batch)));
            tokio::select! {
                biased;
                () = core.clock.sleep_until(wake) => {}
                () = self.sooner.notified() => {}
                Some(()) = renewals.next() => {}
            }
        }
    }

    /// Renewals that a runtime left half done when it shut down are due again.
    fn begin_again(&self) {
        let mut holds = self.holds.lock();
        let left: Vec<RequestId> = holds
            .kept
            .iter_mut()
            .filter_map(|(request, kept)| std::mem::take(&mut kept.renewing).then_some(*request))
            .collect();
        for request in left {
            holds.schedule(request);
        }
    }

    /// What is due now: holds that have ended are lost, others are to be renewed, in batches. And when to look again.
    fn due(&self, core: &Core) -> (Vec<Vec<Arc<Held>>>, Moment) {
        let now = core.clock.now();
        let mut over = Vec::new();
        let mut due: Vec<Arc<Held>> = Vec::new();
        let mut holds = self.holds.lock();
        while let Some(&(at, request)) = holds.agenda.first()
            && at <= now
        {
            let Some(kept) = holds.kept.get_mut(&request) else {
                holds.agenda.pop_first();
                continue;
            };
            if let Some(cause) = kept.held.end(now) {
                over.push((request, cause));
                // Lost below, without the mutex; not looked at again until then.
                holds.agenda.pop_first();
                continue;
            }
            kept.renewing = true;
            due.push(kept.held.clone());
            holds.schedule(request);
        }
        // A call costs more than a name in it: what is due soon fills it up.
        if !due.is_empty() {
            let room = due.len().next_multiple_of(AT_ONCE) - due.len();
            let soon: Vec<RequestId> = holds
                .agenda
                .iter()
                .map_while(|(at, request)| {
                    let kept = holds.kept.get(request)?;
                    (*at <= now.plus(kept.held.keep.lease / SOON)).then_some((kept, *request))
                })
                .filter(|(kept, _)| !kept.renewing && kept.renew_at < kept.held.until())
                .map(|(_, request)| request)
                .take(room)
                .collect();
            for request in soon {
                if let Some(kept) = holds.kept.get_mut(&request) {
                    kept.renewing = true;
                    due.push(kept.held.clone());
                }
                holds.schedule(request);
            }
        }
        let mut renew: BTreeMap<(u64, Name), Vec<Arc<Held>>> = BTreeMap::new();
        for held in due {
            let name = held.name.clone();
            let together = core.backend.together(&name);
            renew.entry((together, name)).or_default().push(held);
        }
        let wake = holds.agenda.first().map_or(Moment::FAR, |(at, _)| *at);
        holds.asleep_until = Some(wake);
        drop(holds);
        for (request, cause) in over {
            self.lose(core, request, cause);
        }
        // Each name's next to each other.
        let mut batches: Vec<(u64, Vec<Arc<Held>>)> = Vec::new();
        for ((together, _), held) in renew
            .into_iter()
            .flat_map(|(at, helds)| helds.into_iter().map(move |held| (at.clone(), held)))
        {
            match batches.last_mut() {
                Some((with, batch)) if *with == together && batch.len() < AT_ONCE => batch.push(held),
                _ => batches.push((together, vec![held])),
            }
        }
        (batches.into_iter().map(|(_, batch)| batch).collect(), wake)
    }

    async fn renew(&self, core: &Core, batch: Vec<Arc<Held>>) {
        let Some(name) = batch.first().map(|held| held.name.clone()) else {
            return;
        };
        let now = core.clock.now();
        let renewals = batch
            .iter()
            .map(|held| Renewal {
                name: held.name.clone(),
                request: held.member.request,
                owner: held.member.owner,
                fence: held.fence,
                lease_ms: millis(held.keep.lease.min(held.cap.since(now))),
                fixed: held.keep.fixed,
            })
            .collect();
        let call = Call {
            name,
            operation: Operation::Renew(renewals),
        };
        let doubts: Vec<bool> = batch.iter().map(|held| held.is_in_doubt(core)).collect();
        match core.backend.call(&call).await {
            Ok(heard) => {
                core.hear(&heard);
                let Reply::Renew(replies) = &heard.answer.reply else {
                    return self.renewed(core, &batch, now);
                };
                let mut again = Vec::new();
                let (mut renewed, mut gone) = (0, 0);
                for ((held, reply), doubt) in batch.iter().zip(replies).zip(doubts) {
                    match *reply {
                        Renewed::Renewed { deadline_ms } => {
                            renewed += 1;
                            if held.cap.since(now) < held.keep.lease {
                                held.capped.store(true, Ordering::Release);
                            }
                            held.push_out(core.clock.now(), core.deadline(&heard, deadline_ms));
                        }
                        // It was given back, or is another request's hold at the moment.
                        Renewed::NotHeld(Ending::Unknown | Ending::Replaced)
                            if doubt || held.is_in_doubt(core) =>
                        {
                            again.push(held.clone());
                        }
                        Renewed::NotHeld(ending) => {
                            gone += 1;
                            self.lose(core, held.member.request, LostCause::of(ending));
                        }
                    }
                }
                observe::renewals(Renewals::Renewed, renewed);
                observe::renewals(Renewals::Gone, gone);
                self.renewed(core, &batch, now);
                self.retry(core, &again);
            }
            // Something is wrong with one of them: the others shall not suffer for it.
            Err(Failure::No(_)) if batch.last().is_some_and(|held| held.name != call.name) => {
                let names = batch.chunk_by(|a, b| a.name == b.name);
                let each = names.map(|of| Box::pin(self.renew(core, of.to_vec())));
                each.collect::<FuturesUnordered<_>>().collect::<()>().await;
            }
            Err(Failure::No(error)) => {
                observe::renewals(Renewals::Refused, batch.len());
                tracing::warn!(name = %call.name, %error, "the server refuses to renew; asking again");
                let now = core.clock.now();
                self.plan(&batch, |held| now.plus((held.until().since(now) / 3).max(RETRY)));
            }
            // The next third comes; until then the guard knows how long it is valid.
            Err(Failure::Unknown(error)) => {
                observe::renewals(Renewals::Unanswered, batch.len());
                tracing::debug!(name = %call.name, %error, "a renewal was not answered");
                self.retry(core, &batch);
            }
        }
    }

    /// The next is counted from when this one was `sent`, as the lease is.
    fn renewed(&self, core: &Core, batch: &[Arc<Held>], sent: Moment) {
        self.plan(batch, |held| {
            if held.keep.fixed || held.is_capped() {
                Moment::FAR
            } else {
                sent.plus(rhythm(core, held.keep.lease))
            }
        });
    }

    fn retry(&self, core: &Core, batch: &[Arc<Held>]) {
        self.plan(batch, |held| {
            core.clock.now().plus((held.keep.lease / 20).min(RETRY))
        });
    }

    fn plan(&self, batch: &[Arc<Held>], renew_at: impl Fn(&Held) -> Moment) {
        let mut holds = self.holds.lock();
        for held in batch {
            let request = held.member.request;
            if let Some(kept) = holds.kept.get_mut(&request) {
                kept.renewing = false;
                kept.renew_at = renew_at(held);
            }
            holds.schedule(request);
        }
    }
}

fn nanos(moment: Moment) -> u64 {
    u64::try_from(moment.0.as_nanos()).unwrap_or(u64::MAX)
}

/// How many are renewed in one call. A hundred keep a server for less than half a millisecond.
const AT_ONCE: usize = 100;
/// Which part of its lease a hold may be renewed early to fill up a call.
const SOON: u32 = 30;

/// How often a lease is renewed. Where no pushes come, that is also how a holder learns that it is revoked.
fn rhythm(core: &Core, lease: Duration) -> Duration {
    if core.backend.pushes() {
        lease / 3
    } else {
        (lease / 3).min(UNPUSHED)
    }
}

/// How often a hold is looked at where no pushes come.
const UNPUSHED: Duration = Duration::from_secs(1);

/// How soon a renewal is tried again that was not answered.
const RETRY: Duration = Duration::from_millis(100);

/// What a grant brings along.
pub(crate) struct Granting {
    pub(crate) name: Name,
    pub(crate) member: Member,
    pub(crate) fence: u64,
    pub(crate) depth: u64,
    pub(crate) keep: Keep,
    pub(crate) label: String,
    pub(crate) upgrade_of: Option<RequestId>,
    /// The acquisition was sent more than once.
    pub(crate) resent: bool,
    pub(crate) until: Moment,
    pub(crate) claimed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ClientId, OwnerId};

    /// As when the answer to a renewal is handled just after the end, and before the timer that would have said so.
    #[test]
    fn what_has_ended_is_not_pushed_out_again() {
        let at = |seconds| Moment(Duration::from_secs(seconds));
        let request = RequestId {
            client: ClientId::random(),
            number: 1,
        };
        let held = Held {
            name: Name::new("job").expect("a name"),
            member: Member {
                request,
                owner: OwnerId::of(request),
            },
            fence: 1,
            depth: AtomicU64::new(1),
            keep: Keep {
                lease: Duration::from_secs(10),
                fixed: false,
                max_hold: None,
                until_dropped: false,
                cap: Moment::FAR,
                replicas: None,
            },
            label: String::new(),
            upgrade_of: None,
            granted: at(100),
            life: Mutex::new(None),
            capped: AtomicBool::new(false),
            marked: AtomicBool::new(false),
            in_doubt: AtomicBool::new(false),
            given_back: AtomicBool::new(false),
            cap: Moment::FAR,
            until: AtomicU64::new(nanos(at(110))),
            end: Mutex::new(None),
            ended: Notify::new(),
        };
        held.push_out(at(109), at(119));
        assert_eq!(held.until(), at(119));
        held.push_out(at(110), at(112));
        assert_eq!(held.until(), at(119), "a renewal never shortens");
        held.push_out(at(119), at(129));
        assert_eq!(held.until(), at(119));
        assert_eq!(held.end(at(119)), Some(LostCause::Lapsed));
    }
}
