//! The only place where a drop becomes I/O: releases and withdrawals that nobody waits for.
//!
//! The invariant: what is handed in stays in the list until the server is known to have done it, or until nothing of it can be left
//! there. So it survives a link that is down, a future that is dropped and a runtime that shuts down.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};

use crate::backend::Failure;
use crate::clock::Moment;
use crate::core::Core;
use crate::protocol::{Call, Member, Name, Operation, Release, Reply, RequestId, Withdraw, Withdrawn};
use crate::watchdog::Held;

#[derive(Default)]
pub(crate) struct Reaper {
    chores: Mutex<Chores>,
    /// There is something to do, or the client ends.
    more: Notify,
    /// All is done.
    done: Condvar,
    settled: Notify,
}

#[derive(Default)]
struct Chores {
    pending: HashMap<RequestId, Chore>,
    fresh: Vec<RequestId>,
}

struct Chore {
    call: Call,
    /// After this nothing can be left on the server.
    give_up: Moment,
    tell: Option<oneshot::Sender<Withdrawn>>,
}

impl Reaper {
    /// Gives a hold back.
    pub(crate) fn release(&self, core: &Core, held: &Held) {
        self.release_again(core, held, false);
    }

    /// Gives a hold back that may have been given back by a call whose answer is unknown.
    pub(crate) fn release_again(&self, core: &Core, held: &Held, again: bool) {
        let call = Call {
            name: held.name.clone(),
            operation: Operation::Release(Release {
                request: held.member.request,
                owner: held.member.owner,
                fence: held.fence,
                again,
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
        // The hold lapses within a lease of the last time it was renewed, and the server's clock may be a little slower.
        let give_up = core.clock.now().plus(lease + lease / 10);
        chores.pending.insert(request, Chore { call, give_up, tell });
        chores.fresh.push(request);
        drop(chores);
        self.more.notify_one();
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.chores.lock().pending.is_empty()
    }

    /// Wakes [`run`](Self::run) to see that the client ends.
    pub(crate) fn nudge(&self) {
        self.more.notify_one();
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
            let fresh: HashSet<RequestId> = std::mem::take(&mut self.chores.lock().fresh)
                .into_iter()
                .collect();
            doing.extend(fresh.into_iter().map(|request| self.carry_out(core, request)));
            if doing.is_empty() && core.is_ending() && self.is_settled() {
                return;
            }
            tokio::select! {
                () = self.more.notified() => {}
                Some(()) = doing.next() => {}
            }
        }
    }

    async fn carry_out(&self, core: &Core, request: RequestId) {
        loop {
            let (call, give_up) = match self.chores.lock().pending.get(&request) {
                Some(chore) => (chore.call.clone(), chore.give_up),
                None => return,
            };
            let outcome = tokio::select! {
                biased;
                outcome = core.backend.call(&call) => outcome,
                () = core.clock.sleep_until(give_up) => {
                    tracing::warn!(name = %call.name, "gave up giving back: its lease has run out by now");
                    return self.strike(request, None);
                }
            };
            match outcome {
                Ok(heard) => {
                    core.hear(&heard);
                    return self.strike(request, Some(heard.answer.reply));
                }
                Err(Failure::No(error)) => {
                    tracing::warn!(name = %call.name, %error, "could not give back; its lease will run out");
                    return self.strike(request, None);
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

    fn strike(&self, request: RequestId, reply: Option<Reply>) {
        let mut chores = self.chores.lock();
        let chore = chores.pending.remove(&request);
        let settled = chores.pending.is_empty();
        drop(chores);
        if let (Some(chore), Some(reply)) = (chore, reply) {
            answer(chore.tell, reply);
        }
        if settled {
            self.done.notify_all();
            self.settled.notify_waiters();
        }
    }

    /// Resolves when nothing is left to do.
    pub(crate) async fn settled(&self) {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            if self.is_settled() {
                return;
            }
            settled.await;
        }
    }
}

fn answer(tell: Option<oneshot::Sender<Withdrawn>>, reply: Reply) {
    if let (Some(tell), Reply::Withdraw(withdrawn)) = (tell, reply) {
        // Whoever asked may have stopped listening.
        let _ = tell.send(withdrawn);
    }
}
