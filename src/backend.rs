//! The seam between the lock and what keeps its truth.
//!
//! A backend carries a [`Call`] to the state machine, wherever that lives, and brings back its [`Answer`]. It decides
//! nothing and retries nothing: every call can be repeated with the same ids, and whoever made it knows whether to. What
//! a call came to is one of three things, and the third is not an error to hide: yes, no, *unknown*.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use crate::clock::Moment;
use crate::error::{Error, ErrorKind};
use crate::looking::{ChangeSet, Cursor, Page, Pattern};
use crate::protocol::{Acquire, Answer, Call, ClientId, ClientInfo, Member, Name, Polled, Push, Replicas};

use crate::state::WhyNot;

pub(crate) mod embedded;
#[cfg(feature = "redis")]
pub(crate) mod redis;
#[cfg(feature = "redis")]
pub(crate) use redis::Examination;

pub(crate) type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The answer to a call, and when the call had certainly not been made yet: what a lease is counted from.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) sent: Moment,
    pub(crate) answer: Answer,
}

#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// It did not happen and will not: the backend says no.
    No(Error),
    /// It may have happened, or may yet. Ask again with the same ids.
    Unknown(Error),
}

/// What became of several acquisitions in one step.
#[derive(Clone, Debug)]
pub(crate) enum Together {
    /// All are granted; for each, in order, what an acquisition of its own would have heard.
    Granted(Vec<Heard>),
    /// One could not be had, or was not to be; none was taken.
    Not(WhyNot),
    /// They can't be taken in one step: that was not tried.
    Apart,
}

/// What a server's clock said in an answer, and when that had certainly not been asked for yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) sent: Moment,
    pub(crate) now_us: u64,
}

/// Where pushes go, each with the last time that the very server told from which it came: the times in it are by that server's
/// clock, and a backend may have several. Called from wherever they arrive; must not block.
pub(crate) type Sink = Box<dyn Fn(Push, Option<Told>) + Send + Sync>;

pub(crate) trait Backend: Send + Sync + 'static {
    /// Makes one call, once. Waits for a link if there is none. Dropping the future makes the outcome unknown.
    fn call<'a>(&'a self, call: &'a Call) -> Later<'a, Result<Heard, Failure>>;

    /// Renewals of names with the same number may go in one call.
    fn together(&self, name: &Name) -> u64 {
        let _ = name;
        0
    }

    /// Acquires several names in one step, all or none, without waiting. Once, as a [`call`](Self::call).
    fn acquire_all<'a>(&'a self, parts: &'a [(Name, Acquire)]) -> Later<'a, Result<Together, Failure>> {
        let _ = parts;
        Box::pin(std::future::ready(Ok(Together::Apart)))
    }

    /// Makes the call here and now, if this backend can: what is dropped is then given back at once.
    fn call_now(&self, call: &Call) -> Option<Heard> {
        let _ = call;
        None
    }

    /// Runs a user's script where the lock is kept, if a hold stands, once.
    #[cfg(feature = "redis")]
    fn run<'a>(&'a self, run: &'a crate::script::Run) -> Later<'a, Result<crate::script::Ran, Failure>> {
        let _ = run;
        Box::pin(std::future::ready(Err(Failure::No(
            crate::error::ErrorKind::Invalid(
                "an embedded client has no server to run scripts on: connect to a Redis server".into(),
            )
            .into(),
        ))))
    }

    /// Makes this client known to whoever asks who is in the way, until `for_ms` from now; with `None`, no longer.
    fn announce<'a>(&'a self, info: Option<&'a ClientInfo>, for_ms: u64) -> Later<'a, Result<(), Failure>>;

    /// Who these clients are. In the order asked.
    fn clients<'a>(&'a self, ids: &'a [ClientId]) -> Later<'a, Result<Vec<Option<ClientInfo>>, Failure>>;

    /// Waits until so many replicas know what the backend knows of a granted request, or the time for it is over. Tells what that is, and how
    /// many do.
    fn replicated<'a>(
        &'a self,
        name: &'a Name,
        member: Member,
        replicas: Replicas,
    ) -> Later<'a, Result<(Polled, u64), Failure>> {
        let _ = (name, member, replicas);
        let error = ErrorKind::Invalid(
            "replicas are asked for, but an embedded server has none: leave them out".into(),
        );
        Box::pin(std::future::ready(Err(Failure::No(error.into()))))
    }

    /// Counts the links: a new number means that pushes may have been missed and that the other side may have changed.
    fn generation(&self) -> watch::Receiver<u64>;

    /// Counts what may keep a server from telling what changes: a link made anew, and, where there are several servers, others in charge.
    fn relinks(&self) -> watch::Receiver<u64> {
        self.generation()
    }

    /// Whether that may concern this name: its link was made anew after `since` was counted.
    fn relinked(&self, name: &Name, since: u64) -> bool {
        let _ = (name, since);
        true
    }

    /// Why there is no link at the moment, if there is none.
    fn trouble(&self) -> Option<Error>;

    /// The same, where this name is kept.
    fn trouble_of(&self, name: &Name) -> Option<Error> {
        let _ = name;
        self.trouble()
    }

    /// What operators ask for, where it can be had.
    fn look(&self) -> Option<&dyn Look> {
        None
    }

    /// Whether grants are told by pushes. Where they are not, who waits must ask.
    fn pushes(&self) -> bool {
        true
    }

    /// What is not as it should be, with its remedy.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Keeps the link up. The client runs this for as long as it lives, on a runtime of its choice; when that runtime shuts down it
    /// drops this future and runs a new one elsewhere, and the backend links anew. Never resolves before `close`.
    fn drive(&self) -> Later<'_, ()>;

    /// Takes the link down, for good. Calls fail from then on.
    fn close(&self) -> Later<'_, ()>;
}

/// What operators ask of a backend, beside the locks. All of it only reads, and can be repeated.
pub(crate) trait Look: Send + Sync {
    /// One page of the names of which anything is kept (a hold, a line, a fence), from `from` on. May tell names that do
    /// not match, and a name twice. Servers without a link come last.
    fn names<'a>(&'a self, pattern: &'a Pattern, from: &'a Cursor) -> Later<'a, Result<Page, Failure>>;

    /// One page of the names that somebody waits for, and perhaps of others, and where the next begins.
    fn lines<'a>(&'a self, from: &'a Cursor) -> Later<'a, Result<Page, Failure>>;

    /// From now on every name that changes comes into the set, until `relinks` counts on or the set is dropped. Whether some may have
    /// been missed since the last such call.
    fn changes<'a>(&'a self, set: &'a Arc<ChangeSet>) -> Later<'a, Result<bool, Failure>>;

    /// Whether these clients hear their pushes now, in the order asked; `None` where it can't be known.
    fn listening<'a>(&'a self, clients: &'a [ClientId]) -> Later<'a, Result<Vec<Option<bool>>, Failure>>;

    /// What the server says of itself.
    #[cfg(feature = "redis")]
    fn examine(&self) -> Later<'_, Result<Examination, Failure>>;

    /// The server that has a name, past the lock.
    #[cfg(feature = "cli")]
    fn bare<'a>(&'a self, name: &'a Name, lease_ms: u64) -> Later<'a, Result<crate::Bare, Failure>>;
}
