//! One opaque error with predicates: what went wrong, for whom, and what to do about it.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::client::Waiting;
use crate::deadlock::Circle;
use crate::owner::Owner;
use crate::protocol::{ClientInfo, Ending, Mode};

/// Why something could not be done.
///
/// Ask it with the predicates; [`Display`](fmt::Display) says what happened and what to do.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use relatch::Relatch;
/// use std::time::Duration;
///
/// let relatch = Relatch::embedded();
/// let lock = relatch.rwlock("catalog")?;
/// let _held = lock.write().label("nightly import").await?;
///
/// let error = lock.read().timeout(Duration::from_millis(20)).await.unwrap_err();
/// assert!(error.is_timeout());
/// assert_eq!(error.blame().unwrap().holders[0].label.as_deref(), Some("nightly import"));
/// # Ok::<(), relatch::Error>(()) }).unwrap();
/// ```
pub struct Error(Box<ErrorKind>);

#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ErrorKind {
    #[error("{0}")]
    Invalid(String),
    #[error("no {mode} hold on {name:?} within {}{blame}", round(*.waited))]
    Timeout {
        name: String,
        mode: Mode,
        waited: Duration,
        blame: Blame,
    },
    #[error("this owner reads {name:?} and asks for {mode}, which would wait for its own read to end; {}", remedy(*.mode))]
    Refused { name: String, mode: Mode },
    #[error(
        "this owner holds {name:?} already, or waits for it, and asks for {mode}: this lock does not re-enter; release what is held first, or leave `non_reentrant()` out"
    )]
    SelfLock { name: String, mode: Mode },
    #[error(
        "no {mode} hold on {name:?}: waiting for it would close a circle, in which {circle}; release what the owner holds, and try again; or take names in one order"
    )]
    Deadlock {
        name: String,
        mode: Mode,
        circle: Circle,
    },
    #[error("the hold on {name:?} is lost: {cause}")]
    Lost { name: String, cause: LostCause },
    #[error(
        "the fence {fence} is stale: {seen} has been here; the hold that it belongs to is lost, and the next one has written"
    )]
    Stale { fence: u64, seen: u64 },
    #[error(
        "the hold on {name:?} was given back, as {acknowledged} of {wanted} replicas acknowledged it within {within:?}: see to \
             the server's replicas (INFO replication), or ask for fewer"
    )]
    Unreplicated {
        name: String,
        wanted: u32,
        acknowledged: u64,
        within: Duration,
    },
    #[error("{0}")]
    Unreachable(String),
    #[error("this client is closed; connect a new one")]
    Closed,
    #[error("{0}")]
    Server(String),
}

impl Error {
    pub(crate) fn kind(&self) -> &ErrorKind {
        &self.0
    }

    /// The wait ran out. [`blame`](Self::blame) says who was in the way.
    pub fn is_timeout(&self) -> bool {
        matches!(self.kind(), ErrorKind::Timeout { .. })
    }

    /// The acquisition would have waited for its own owner: a hang, refused. Or it would have re-entered where that is
    /// [not to be](crate::RwLock::non_reentrant).
    pub fn is_refused(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::Refused { .. } | ErrorKind::SelfLock { .. }
        )
    }

    /// The acquisition would have closed a circle of owners that wait for each other, and its client was told to
    /// [refuse](crate::Config::refuse_deadlocks) that. [`circle`](Self::circle) names them. Release what its owner holds before you try again.
    pub fn is_deadlock(&self) -> bool {
        matches!(self.kind(), ErrorKind::Deadlock { .. })
    }

    /// The hold had ended before it was asked to do this. [`lost_cause`](Self::lost_cause) says how.
    pub fn is_lost(&self) -> bool {
        matches!(self.kind(), ErrorKind::Lost { .. })
    }

    /// A fence is smaller than one that has been seen: its hold is lost. See [`Gate`](crate::Gate).
    pub fn is_stale(&self) -> bool {
        matches!(self.kind(), ErrorKind::Stale { .. })
    }

    /// Fewer replicas than were asked for acknowledged the hold in time. It was given back. See [`Acquire::replicas`](crate::Acquire::replicas).
    pub fn is_unreplicated(&self) -> bool {
        matches!(self.kind(), ErrorKind::Unreplicated { .. })
    }

    /// The server could not be reached, or did not answer in time. Whether it has done what it was asked is settled in the
    /// background: nothing stays behind.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.kind(), ErrorKind::Unreachable(_))
    }

    /// A name, an option or an address that can't be used.
    pub fn is_invalid(&self) -> bool {
        matches!(self.kind(), ErrorKind::Invalid(_))
    }

    /// The server answered, and said no: a key of another type, a missing right, a version that is too old.
    pub fn is_server(&self) -> bool {
        matches!(self.kind(), ErrorKind::Server(_))
    }

    /// The client was closed.
    pub fn is_closed(&self) -> bool {
        matches!(self.kind(), ErrorKind::Closed)
    }

    /// Who was in the way when the wait ran out.
    pub fn blame(&self) -> Option<&Blame> {
        match self.kind() {
            ErrorKind::Timeout { blame, .. } => Some(blame),
            _ => None,
        }
    }

    /// The circle that would have been closed.
    pub fn circle(&self) -> Option<&Circle> {
        match self.kind() {
            ErrorKind::Deadlock { circle, .. } => Some(circle),
            _ => None,
        }
    }

    /// How the hold was lost.
    pub fn lost_cause(&self) -> Option<LostCause> {
        match self.kind() {
            ErrorKind::Lost { cause, .. } => Some(*cause),
            _ => None,
        }
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self(Box::new(kind))
    }
}

impl Clone for Error {
    fn clone(&self) -> Self {
        self.kind().clone().into()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::error::Error for Error {}

/// What somebody gave that can't be used, as far as it is fit to be repeated: it may be anything, of any length.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        None => format!("{text:?}"),
        Some((cut, _)) => format!("{:?}…", &text[..cut]),
    }
}

/// As a person reads it.
fn round(time: Duration) -> String {
    format!("{:?}", Duration::from_millis(crate::protocol::millis(time)))
}

/// What to do instead of what was refused.
fn remedy(mode: Mode) -> &'static str {
    match mode {
        Mode::Upgradable => "take the upgradable hold before the read, or release the read",
        _ => "take `upgradable_read()` instead of the read and upgrade it, or release the read",
    }
}

/// How a hold was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LostCause {
    /// Its lease ran out: a fixed lease ended, or it could not be renewed in time.
    Lapsed,
    /// An operator revoked it.
    Revoked,
    /// The server no longer knows it: it lost its data, or the key was deleted or evicted.
    Forgotten,
    /// It reached its `max_hold`.
    MaxHold,
    /// Its client was closed.
    Closed,
}

impl LostCause {
    /// What a server's answer means to a guard that thought it was held.
    pub(crate) fn of(ending: Ending) -> Self {
        match ending {
            Ending::Lapsed => LostCause::Lapsed,
            Ending::Revoked => LostCause::Revoked,
            Ending::Withdrawn | Ending::Replaced | Ending::Forgotten | Ending::Unknown => {
                LostCause::Forgotten
            }
        }
    }
}

impl fmt::Display for LostCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LostCause::Lapsed => "its lease ran out",
            LostCause::Revoked => "an operator revoked it",
            LostCause::Forgotten => "the server no longer knows it (it lost data, or the key was deleted)",
            LostCause::MaxHold => "it reached its max_hold",
            LostCause::Closed => "its client was closed",
        })
    }
}

/// Who is in the way of a wait that ran out.
///
/// As the server saw it at that moment; empty when it could not be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Blame {
    /// Some of those who hold: at most four owners.
    pub holders: Vec<Holder>,
    /// How many owners are in the way in all.
    pub holder_count: u64,
    /// How many requests were ahead in line.
    pub ahead: u64,
    /// Some of those: at most four, the first in line first.
    pub ahead_in_line: Vec<Waiting>,
}

/// One granted request, as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Holder {
    /// Who holds.
    pub owner: Owner,
    /// The acquisition, by the id that it has on the server.
    pub request: String,
    /// In which mode.
    pub mode: Mode,
    /// For how long.
    #[serde(with = "humantime_serde")]
    pub held_for: Duration,
    /// How long its lease still runs if nothing renews it.
    #[serde(with = "humantime_serde")]
    pub lease_left: Duration,
    /// An operator has revoked it, and its holder has not given it back yet.
    pub revoked: bool,
    /// The label it was acquired with.
    pub label: Option<String>,
    /// The process that acquired it; `None` when it is no longer known.
    pub client: Option<ClientInfo>,
    /// Whether that process is connected to the server at the moment. `None` where that can't be known, or was not asked: only
    /// [`Relatch::inspect`](crate::Relatch::inspect) does.
    pub connected: Option<bool>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by owner {} for {:?}", self.mode, self.owner, self.held_for)?;
        if let Some(client) = &self.client {
            write!(f, ", {client}")?;
        }
        if let Some(label) = &self.label {
            write!(f, ", {label:?}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = ": held as ";
        for holder in &self.holders {
            write!(f, "{before}{holder}")?;
            before = "; ";
        }
        let owners: std::collections::BTreeSet<_> =
            self.holders.iter().map(|h| h.owner.to_string()).collect();
        if self.holder_count > owners.len() as u64 {
            write!(f, "; and {} more", self.holder_count - owners.len() as u64)?;
        }
        if self.ahead > 0 {
            write!(f, "; {} ahead in line", self.ahead)?;
            let mut before = ": ";
            for waiting in &self.ahead_in_line {
                write!(f, "{before}{waiting}")?;
                before = "; ";
            }
            if !self.ahead_in_line.is_empty() && self.ahead > self.ahead_in_line.len() as u64 {
                write!(f, "; and {} more", self.ahead - self.ahead_in_line.len() as u64)?;
            }
        }
        if self.holders.is_empty() && self.ahead == 0 {
            f.write_str("; who was in the way could not be learnt")?;
        }
        Ok(())
    }
}
