//! The only place where a drop becomes I/O: releases and withdrawals that nobody waits for.
//!
//! The invariant: what is handed in stays in the list until the server is known to have done it, or until nothing of it can be left
//! there. So it survives a link that is down, a future that is dropped and a runtime that shuts down.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};
use tracing::Instrument as _;

use crate::backend::Failure;
use crate::clock::Moment;
use crate::core::Core;
use crate::observe;
use crate::protocol::{
    Call, Member, Name, Operation, OwnerId, Release, Reply, RequestId, Withdraw, Withdrawn,
};
use crate::watchdog::Held;

#[derive(Default)]
pub(crate) struct Reaper {
    chores: Mutex<Chores>,
    /// There is something to do, or the client ends.
    more: Notify,
    /// All is done.
    done: Condvar,
    /// Something was done.
    struck: Notify,
}

#[derive(Default)]
struct Chores {
    pending: HashMap<RequestId, Chore>,
    fresh: Vec<RequestId>,
    /// How many were ever handed in.
    count: u64,
    /// The client ends, and nothing is handed in any more that was not handed in before.
    last: bool,
    /// All is done, for good.
    over: bool,
}

struct Chore {
    /// A later one for the same request takes its place; the answer to this one does not strike that.
    number: u64,
    call: Call,
    /// After this nothing can be left on the server.
    give_up: Moment,
    tell: Option<oneshot::Sender<Withdrawn>>,
}

impl Reaper {
    /// Gives a hold back.
    pub(crate) fn release(&self, core: &Core, held: &Held) {
        let call = Call {
            name: held.name.clone(),
            operation: Operation::Release(Release {
                request: held.member.request,
                owner: held.member.owner,
                fence: held.fence,
                again: false,
                mark: held.is_marked(),
            }),
        };
        let lease = held.keep.lease.max(core.config.claim);
        self.submit(core, held.member.request, call, lease, None);
    }

    /// Leaves the line, or gives back what was granted in the meantime. A copy that is still under way takes nothing.
    pub(crate) fn withdraw(
        &self,
        core: &Core,
        name: &Name,
        member: Member,
        upgrade_of: Option<RequestId>,
        lease: Duration,
        tell: Option<oneshot::Sender<Withdrawn>>,
    ) {
        let call = Call {
            name: name.clone(),
            operation: Operation::Withdraw(Withdraw {
                request: member.request,
                owner: member.owner,
                blame: tell.is_some(),
                upgrade_of,
            }),
        };
        self.submit(core, member.request, call, lease.max(core.config.claim), tell);
    }

    fn submit(
        &self,
        core: &Core,
        request: RequestId,
        call: Call,
        lease: Duration,
        tell: Option<oneshot::Sender<Withdrawn>>,
    ) {
        if let Some(heard) = core.backend.call_now(&call) {
            answer(tell, heard.answer.reply);
            return;
        }
        let mut chores = self.chores.lock();
        if chores.over {
            // It was given back when the client ended.
            return;
        }
        // The hold lapses within a lease of the last time it was renewed, and the server's clock may be a little slower. An acquisition
        // may still be under way, in the buffers of a server that is stopped, say: it is withdrawn for as long as a mark would be kept.
        let under_way = match &call.operation {
            Operation::Withdraw(_) => Duration::from_millis(core.config.tuning().mark_ms),
            _ => Duration::ZERO,
        };
        let give_up = core.clock.now().plus(under_way + lease + lease / 10);
        // A withdrawal settles whatever the request has come to; a release only what was granted.
        if let (Operation::Release(_), Some(Operation::Withdraw(_))) = (
            &call.operation,
            chores.pending.get(&request).map(|chore| &chore.call.operation),
        ) {
            return;
        }
        chores.count += 1;
        let chore = Chore {
            number: chores.count,
            call,
            give_up,
            tell,
        };
        chores.pending.insert(request, chore);
        chores.fresh.push(request);
        drop(chores);
        self.more.notify_one();
    }

    /// Nothing is left to be given back.
    pub(crate) fn is_settled(&self) -> bool {
        self.chores.lock().pending.is_empty()
    }

    /// The client ends, and has handed in all that it had: [`run`](Self::run) ends when that is done.
    pub(crate) fn finish(&self) {
        self.chores.lock().last = true;
        self.more.notify_one();
    }

    /// Ends it, if that is due.
    fn is_over(&self) -> bool {
        let mut chores = self.chores.lock();
        chores.over |= chores.last && chores.pending.is_empty();
        chores.over
    }

    /// Is an upgrade of this request under way to be undone? Until then the server may know it by the other request.
    pub(crate) fn is_undoing(&self, request: RequestId) -> bool {
        self.chores.lock().pending.values().any(
            |chore| matches!(&chore.call.operation, Operation::Withdraw(w) if w.upgrade_of == Some(request)),
        )
    }

    /// Resolves when no upgrade of this request is to be undone any more.
    pub(crate) async fn undone(&self, request: RequestId) {
        self.until(|| !self.is_undoing(request)).await;
    }

    /// Is something of this owner's on this name under way to be given back? Until then the server may count it.
    fn is_returning(&self, name: &Name, owner: OwnerId) -> bool {
        let of = |call: &Call| match &call.operation {
            Operation::Release(release) => release.owner == owner && call.name == *name,
            Operation::Withdraw(withdraw) => withdraw.owner == owner && call.name == *name,
            _ => false,
        };
        self.chores.lock().pending.values().any(|chore| of(&chore.call))
    }

    /// Resolves when the server knows of all that this owner has dropped.
    pub(crate) async fn returned(&self, name: &Name, owner: OwnerId) {
        self.until(|| !self.is_returning(name, owner)).await;
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        loop {
            let mut struck = std::pin::pin!(self.struck.notified());
            struck.as_mut().enable();
            if condition() {
                return;
            }
            struck.await;
        }
    }

    /// Blocks until nothing is left to do, at most for `within`.
    pub(crate) fn wait_settled(&self, within: Duration) {
        let mut chores = self.chores.lock();
        let _timed_out = self
            .done
            .wait_while_for(&mut chores, |chores| !chores.pending.is_empty(), within);
    }

    /// Does what is handed in. Resolves when the client ends and nothing is left to do.
    pub(crate) async fn run(&self, core: &Core) {
        let mut doing = FuturesUnordered::new();
        // What a runtime that has shut down left half done is begun again: everything here can be repeated.
        {
            let mut chores = self.chores.lock();
            chores.fresh = chores.pending.keys().copied().collect();
        }
        loop {
            // In an order that does not hang on a hasher.
            let fresh: BTreeSet<RequestId> = std::mem::take(&mut self.chores.lock().fresh)
                .into_iter()
                .collect();
            doing.extend(fresh.into_iter().map(|request| self.carry_out(core, request)));
            if doing.is_empty() && self.is_over() {
                return;
            }
            tokio::select! {
                biased;
                () = self.more.notified() => {}
                Some(()) = doing.next() => {}
            }
        }
    }

    async fn carry_out(&self, core: &Core, request: RequestId) {
        let span = match self.chores.lock().pending.get(&request) {
            Some(chore) => observe::background(&chore.call),
            None => return,
        };
        let outcome = self.insist(core, request).instrument(span.clone()).await;
        span.record("outcome", outcome);
    }

    /// In a word, what came of it.
    async fn insist(&self, core: &Core, request: RequestId) -> &'static str {
        let mut rest = REFUSED;
        loop {
            let (number, call, give_up) = match self.chores.lock().pending.get(&request) {
                Some(chore) => (chore.number, chore.call.clone(), chore.give_up),
                None => return "settled",
            };
            let outcome = tokio::select! {
                biased;
                outcome = core.backend.call(&call) => outcome,
                () = core.clock.sleep_until(give_up) => {
                    tracing::warn!(name = %call.name, "gave up giving back: its lease has run out by now");
                    self.strike(request, number, None);
                    return "lapsed";
                }
            };
            match outcome {
                Ok(heard) => {
                    core.hear(&heard);
                    self.strike(request, number, Some(heard.answer.reply));
                    return "released";
                }
                // The server may change its mind: it was only out of memory, or a replica.
                Err(Failure::No(error)) => {
                    tracing::warn!(name = %call.name, %error, "the server refuses to take a hold back; asking again");
                    let again = core.clock.now().plus(rest);
                    rest = (rest * 2).min(RARELY);
                    core.clock.sleep_until(again.min(give_up)).await;
                }
                Err(Failure::Unknown(_)) => {
                    if let Some(chore) = self.chores.lock().pending.get_mut(&request)
                        && let Operation::Release(release) = &mut chore.call.operation
                    {
                        release.again = true;
                    }
                    core.pause().await;
                }
            }
        }
    }

    fn strike(&self, request: RequestId, number: u64, reply: Option<Reply>) {
        let mut chores = self.chores.lock();
        let current = chores
            .pending
            .get(&request)
            .is_some_and(|chore| chore.number == number);
        let chore = current.then(|| chores.pending.remove(&request)).flatten();
        let settled = chores.pending.is_empty();
        drop(chores);
        if let (Some(chore), Some(reply)) = (chore, reply) {
            answer(chore.tell, reply);
        }
        self.struck.notify_waiters();
        if settled {
            self.done.notify_all();
        }
    }
}

/// How soon is tried again what the server has refused.
const REFUSED: Duration = Duration::from_millis(100);
/// And how rarely at last.
const RARELY: Duration = Duration::from_secs(5);

fn answer(tell: Option<oneshot::Sender<Withdrawn>>, reply: Reply) {
    if let (Some(tell), Reply::Withdraw(withdrawn)) = (tell, reply) {
        // Whoever asked may have stopped listening.
        let _ = tell.send(withdrawn);
    }
}
