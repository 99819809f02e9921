#![doc = include_str!("../README.md")]
#![cfg_attr(
    not(feature = "redis"),
    allow(dead_code, reason = "what only a server's backend says or asks for")
)]

mod backend;
pub mod blocking;
mod client;
mod clock;
mod config;
mod core;
mod deadlock;
mod entropy;
mod error;
mod fenced;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod guard;
mod lock;
mod looking;
mod multi;
mod mutex;
mod observe;
mod owner;
mod protocol;
mod reaper;
mod room;
#[cfg(feature = "redis")]
mod script;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod simulate;
mod state;
mod striped;
#[cfg(test)]
mod tests;
mod waiters;
mod watchdog;

pub use backend::embedded::Embedded;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use backend::redis::Bare;
#[cfg(feature = "redis")]
#[doc(hidden)]
pub use backend::redis::{CallEncoding, Examination};
pub use client::{Builder, Inspection, Relatch, Waiting};
pub use clock::Clock;
pub use config::{Backoff, Config, Tls};
pub use deadlock::{Circle, CircleWait, Deadlocks};
pub use error::{Blame, Error, Holder, LostCause};
pub use fenced::{Gate, Stamp};
pub use guard::{FromHold, MutexGuard, ReadGuard, UpgradableGuard, Upgrade, UpgradeError, WriteGuard};
pub use lock::{Acquire, Acquiring, RwLock, TryAcquire};
pub use looking::{Changed, Changes, Names};
pub use multi::{LostPart, Multi, MultiGuard, Part, Parts, TryMulti};
pub use mutex::Mutex;
pub use owner::Owner;
pub use protocol::{ClientInfo, Mode};
#[cfg(feature = "redis")]
pub use script::{FencedRun, FencedScript, ScriptValue};
pub use striped::{StripeKey, Striped};
