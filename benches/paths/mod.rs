//! The hot paths, each as a step that can be repeated: for `hot.rs`, which times them, and for `instructions.rs`, which counts.
//!
//! Whole public calls: what is within them may be changed at will, and what it costs is seen all the same.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use relatch::{Owner, Relatch, RwLock};

/// Polls once: on the embedded backend an answer is there at once, or it waits in line.
pub(crate) fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// What can't wait here.
pub(crate) fn now<F: Future>(future: F) -> F::Output {
    match poll(&mut Box::pin(future)) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits, where nobody is in the way"),
    }
}

/// A path on the embedded backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Write,
    Read,
    /// A write pair of an owner that writes already.
    Reentry,
    /// A write that waits for another is handed the lock.
    Handoff,
}

pub(crate) const EMBEDDED: [(&str, Path); 4] = [
    ("embedded write pair", Path::Write),
    ("embedded read pair", Path::Read),
    ("embedded re-entry pair", Path::Reentry),
    ("embedded handoff", Path::Handoff),
];

/// Something to repeat.
pub(crate) struct Steps {
    path: Path,
    lock: RwLock,
    owner: Owner,
    /// What is held all the while.
    held: Option<relatch::WriteGuard>,
}

impl Steps {
    pub(crate) fn new(path: Path) -> Self {
        let lock = Relatch::embedded().rwlock("hot").expect("it is a name");
        let owner = Owner::new();
        let held = match path {
            Path::Reentry => Some(now(lock.write().owner(&owner).into_future()).expect("it is free")),
            Path::Handoff => Some(now(lock.write().into_future()).expect("it is free")),
            Path::Write | Path::Read => None,
        };
        Self {
            path,
            lock,
            owner,
            held,
        }
    }

    pub(crate) fn step(&mut self) {
        let lock = &self.lock;
        match self.path {
            Path::Write => {
                let guard = now(lock.write().into_future()).expect("it is free");
                now(guard.release()).expect("it is held");
            }
            Path::Read => {
                let guard = now(lock.read().into_future()).expect("it is free");
                now(guard.release()).expect("it is held");
            }
            Path::Reentry => {
                let guard = now(lock.write().owner(&self.owner).into_future()).expect("its owner holds");
                now(guard.release()).expect("it is held");
            }
            Path::Handoff => {
                let mut next = lock.write().into_future();
                assert!(poll(&mut next).is_pending(), "somebody holds");
                now(self.held.take().expect("somebody holds").release()).expect("it is held");
                match poll(&mut next) {
                    Poll::Ready(guard) => self.held = Some(guard.expect("it was handed over")),
                    Poll::Pending => panic!("it was not handed over"),
                }
            }
        }
    }
}
