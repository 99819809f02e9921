//! The nouns: what a client says to a backend, and what it hears.
//!
//! Everything here is data. No clock, no I/O, no policy: [`crate::state`] decides, `scripts/` decide the same on a
//! server, and a backend carries these values to whichever of the two it stands for.
//!
//! Three kinds of identity:
//!
//! - an **owner** re-enters ([`OwnerId`]);
//! - a **client** is one connection to a backend, and hears pushes ([`ClientId`]);
//! - a **request** is one acquisition, from the moment it is asked for until it is released ([`RequestId`]). Asking twice with
//!   the same id is asking once: this is what makes every call safe to repeat.
//!
//! A hold is the set of an owner's granted requests; its depth in a mode is how many of them are in that mode.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::entropy;
use crate::error::{Error, ErrorKind, quoted};

/// The longest name, in bytes.
pub(crate) const MAX_NAME: usize = 512;
/// The longest label, in bytes.
pub(crate) const MAX_LABEL: usize = 256;

/// What a user locks: any UTF-8 string of 1 to 512 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name(Arc<str>);

impl Name {
    pub(crate) fn new(name: &str) -> Result<Self, Error> {
        if name.is_empty() {
            return Err(
                ErrorKind::Invalid("a lock's name is empty; give it 1 to 512 bytes of UTF-8".into()).into(),
            );
        }
        if name.len() > MAX_NAME {
            return Err(ErrorKind::Invalid(format!(
                "a lock's name has {} bytes; {MAX_NAME} are allowed: hash what is longer",
                name.len()
            ))
            .into());
        }
        Ok(Self(name.into()))
    }

    /// One that is known to be no longer than allowed.
    pub(crate) fn known(name: String) -> Self {
        debug_assert!(!name.is_empty() && name.len() <= MAX_NAME, "{name:?}");
        Self(name.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// How a hold shares its lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Shared: any number of readers hold at once.
    Read,
    /// Shared with readers, but only one owner at a time; may be upgraded to [`Mode::Write`].
    Upgradable,
    /// Exclusive.
    Write,
}

impl Mode {
    /// The word for it, as on the server, in logs and in the command.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Read => "read",
            Mode::Upgradable => "upgradable",
            Mode::Write => "write",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Mode {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self, Error> {
        match s {
            "read" => Ok(Mode::Read),
            "upgradable" => Ok(Mode::Upgradable),
            "write" => Ok(Mode::Write),
            other => Err(ErrorKind::Invalid(format!(
                "{} is not a mode: read, upgradable or write",
                quoted(other)
            ))
            .into()),
        }
    }
}

/// Who re-enters. A UUID. On a server 22 characters of base64url, or, if it was made for a request, that request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct OwnerId(pub(crate) Uuid);

impl OwnerId {
    pub(crate) fn random() -> Self {
        Self(entropy::uuid())
    }

    /// The owner that is made for a request without one: a UUID of version 8, in which the request is written. A server then needs to know one of the
    /// two.
    pub(crate) fn of(request: RequestId) -> Self {
        Self(Uuid::from_u64_pair(
            request.client.0,
            VARIANT | (request.number & !VARIANT_BITS),
        ))
    }

    /// The request that it was made for, if it was.
    fn request(self) -> Option<RequestId> {
        let (client, number) = self.0.as_u64_pair();
        (client & VERSION_BITS == VERSION && number & VARIANT_BITS == VARIANT).then_some(RequestId {
            client: ClientId(client),
            number: number & !VARIANT_BITS,
        })
    }

    /// As on a server.
    pub(crate) fn wire(self) -> String {
        let mut text = String::with_capacity(32);
        self.write(&mut text);
        text
    }

    pub(crate) fn write(self, to: &mut String) {
        match self.request() {
            Some(request) => request.write(to),
            None => URL_SAFE_NO_PAD.encode_string(self.0.as_bytes(), to),
        }
    }

    /// Only what [`wire`](Self::wire) writes: an owner has one form on a server.
    pub(crate) fn from_wire(text: &str) -> Option<Self> {
        if text.contains('.') {
            let owner = Self::of(RequestId::from_wire(text)?);
            return (owner.wire() == text).then_some(owner);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let owner = Self(Uuid::from_slice(&bytes).ok()?);
        owner.request().is_none().then_some(owner)
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Where a UUID says its version, in its first half, and its variant, in its second (RFC 9562).
const VERSION_BITS: u64 = 0xf000;
const VERSION: u64 = 0x8000;
const VARIANT_BITS: u64 = 0b11 << 62;
const VARIANT: u64 = 0b10 << 62;

/// The first character of a client's text, 6 bits, in one that gets no pushes.
const QUIET: u64 = 0b11_1111;
const QUIET_AT: u32 = 58;

/// One client of a backend: 60 random bits, and four that make it the first half of a UUID; 11 characters of base64url on a server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ClientId(pub(crate) u64);

impl ClientId {
    pub(crate) fn random() -> Self {
        let id = Self(entropy::bits() & !VERSION_BITS | VERSION);
        if id.is_quiet() {
            Self(id.0 & !(1 << 63))
        } else {
            id
        }
    }

    /// One that gets no pushes, and polls instead: its text begins with `_`, as no other's does. What is granted to it counts as heard.
    pub(crate) fn quiet() -> Self {
        Self(Self::random().0 | QUIET << QUIET_AT)
    }

    pub(crate) fn is_quiet(self) -> bool {
        self.0 >> QUIET_AT == QUIET
    }

    pub(crate) fn wire(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0.to_be_bytes())
    }

    pub(crate) fn from_wire(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        Some(Self(u64::from_be_bytes(bytes.try_into().ok()?)))
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.wire())
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.wire())
    }
}

/// What belongs to clients or to requests. Their ids are random or our own: nobody can choose them so that they collide, which is what a slower hash is for.
pub(crate) type Ids<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Times in tickets and requests are microseconds from here (2025-01-01), so that four bands of tickets fit into a double until 2096.
pub(crate) const EPOCH_US: u64 = 1_735_689_600_000_000;

/// One acquisition. `<client>.<number>` on a server, so that whoever grants it knows whom to tell.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RequestId {
    pub(crate) client: ClientId,
    /// Grows with every request of a client. When it was made, in microseconds of the server's after [`EPOCH_US`], as far as the client knows
    /// the server's time.
    pub(crate) number: u64,
}

impl RequestId {
    /// When it was made, if its client knew the time: in milliseconds.
    pub(crate) fn made_ms(self) -> u64 {
        self.number.saturating_add(EPOCH_US) / 1000
    }

    pub(crate) fn wire(self) -> String {
        let mut text = String::with_capacity(32);
        self.write(&mut text);
        text
    }

    /// Every call has some.
    pub(crate) fn write(self, to: &mut String) {
        let mut client = [0; 11];
        let encoded = URL_SAFE_NO_PAD.encode_slice(self.client.0.to_be_bytes(), &mut client);
        to.push_str(std::str::from_utf8(&client[..encoded.unwrap_or(0)]).unwrap_or_default());
        to.push('.');
        number_to_wire(self.number, to);
    }

    pub(crate) fn from_wire(text: &str) -> Option<Self> {
        let (client, number) = text.split_once('.')?;
        // One request has one text, as a script compares texts.
        Some(Self {
            client: ClientId::from_wire(client)?,
            number: number_from_wire(number)?,
        })
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.wire())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.wire())
    }
}

/// What a client asks of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: Name,
    pub(crate) operation: Operation,
}

impl Call {
    /// Where renewals are of several names: a call for each, in order. Otherwise none.
    pub(crate) fn parts(&self) -> Vec<Call> {
        let Operation::Renew(renewals) = &self.operation else {
            return Vec::new();
        };
        if renewals.iter().all(|renewal| renewal.name == self.name) {
            return Vec::new();
        }
        renewals
            .chunk_by(|a, b| a.name == b.name)
            .map(|of| Call {
                name: of[0].name.clone(),
                operation: Operation::Renew(of.to_vec()),
            })
            .collect()
    }
}

/// The operations; one script each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Acquire(Acquire),
    Release(Release),
    Downgrade(Downgrade),
    /// Of one name or of several, as far as the backend says that they go [`together`](crate::backend::Backend::together); the
    /// call's is the first. At most [`MAX_BATCH`] at once.
    Renew(Vec<Renewal>),
    Withdraw(Withdraw),
    /// Refreshes requests that wait, and asks what became of them. At most [`MAX_BATCH`] at once.
    Poll(Vec<Member>),
    Revoke(Revoke),
    /// Holders and waiters, at most so many of each.
    Inspect(usize),
}

/// How many requests one call may carry.
pub(crate) const MAX_BATCH: usize = 500;

/// A request and its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) request: RequestId,
    pub(crate) owner: OwnerId,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acquire {
    pub(crate) request: RequestId,
    pub(crate) owner: OwnerId,
    pub(crate) mode: Mode,
    /// Get in line if it can't be granted at once.
    pub(crate) wait: bool,
    /// Refuse it if its owner holds already, or waits.
    pub(crate) first: bool,
    pub(crate) lease_ms: u64,
    /// The place it had before the server forgot it; 0 for none.
    pub(crate) ticket: u64,
    /// The granted upgradable request that becomes this one.
    pub(crate) upgrade_of: Option<RequestId>,
    pub(crate) label: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) request: RequestId,
    pub(crate) owner: OwnerId,
    /// The fence the hold was granted with: a server that knows only smaller ones has lost data.
    pub(crate) fence: u64,
    /// Sent before, answer unknown.
    pub(crate) again: bool,
    /// Leave a mark: the acquisition was sent more than once, so that a copy of it may still arrive, or its upgrade may
    /// still be undone.
    pub(crate) mark: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Downgrade {
    pub(crate) request: RequestId,
    pub(crate) owner: OwnerId,
    pub(crate) fence: u64,
    pub(crate) to: Mode,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Renewal {
    pub(crate) name: Name,
    pub(crate) request: RequestId,
    pub(crate) owner: OwnerId,
    pub(crate) fence: u64,
    pub(crate) lease_ms: u64,
    /// A fixed lease is counted from the grant, any other from now.
    pub(crate) fixed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Withdraw {
    pub(crate) request: RequestId,
    pub(crate) owner: OwnerId,
    /// Also tell who is in the way.
    pub(crate) blame: bool,
    /// If it is granted already, turn it back into the upgradable request that it was.
    pub(crate) upgrade_of: Option<RequestId>,
}

/// Takes holds away. The holders are told; the lock goes on when they have given back, or when their leases have run
/// out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revoke {
    /// Of one owner, or of all.
    pub(crate) owner: Option<OwnerId>,
    /// What was granted later stays: whoever enters when a hold was given back is not meant (but a lone reader counts from when it asked, up to
    /// a second before). In the server's milliseconds; 0 takes nothing, and only tells.
    pub(crate) granted_by_ms: u64,
}

/// A reply, and the server's time when it was made, in microseconds since 1970; only a release, for whose reply it means nothing, does not tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) now_us: Option<u64>,
    pub(crate) reply: Reply,
}

impl Answer {
    /// The answers to the [`parts`](Call::parts) of a call are the answer to it.
    pub(crate) fn joined(parts: impl IntoIterator<Item = Answer>) -> Answer {
        let mut joined = Answer {
            now_us: None,
            reply: Reply::Renew(Vec::new()),
        };
        for part in parts {
            joined.now_us = joined.now_us.or(part.now_us);
            if let (Reply::Renew(all), Reply::Renew(rows)) = (&mut joined.reply, part.reply) {
                all.extend(rows);
            }
        }
        joined
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Acquire(Acquired),
    Release(Released),
    Downgrade(Downgraded),
    Renew(Vec<Renewed>),
    Withdraw(Withdrawn),
    Poll(Vec<Polled>),
    Revoke(Revoking),
    Inspect(Snapshot),
}

/// What a granted request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) fence: u64,
    /// When it lapses if nothing renews it, in the server's milliseconds since 1970.
    pub(crate) deadline_ms: u64,
    /// How many times its owner now holds in its mode.
    pub(crate) depth: u64,
}

/// Why a request is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Its lease ran out.
    Lapsed,
    /// An operator took it.
    Revoked,
    /// Its waiter left.
    Withdrawn,
    /// Its upgrade took its place.
    Replaced,
    /// The server knows nothing of it, and less than it should: it lost data.
    Forgotten,
    /// The server knows nothing of it: it was released, or never was.
    Unknown,
}

impl Ending {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Ending::Lapsed => "lapsed",
            Ending::Revoked => "revoked",
            Ending::Withdrawn => "withdrawn",
            Ending::Replaced => "replaced",
            Ending::Forgotten => "forgotten",
            Ending::Unknown => "unknown",
        }
    }

    pub(crate) fn from_wire(word: &str) -> Option<Self> {
        [
            Ending::Lapsed,
            Ending::Revoked,
            Ending::Withdrawn,
            Ending::Replaced,
            Ending::Forgotten,
            Ending::Unknown,
        ]
        .into_iter()
        .find(|e| e.as_str() == word)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Acquired {
    Granted(Grant),
    /// In line. `wake_ms` is when the earliest lease in the way lapses, for the first in line; 0 for the others.
    Queued {
        ticket: u64,
        wake_ms: u64,
    },
    /// Not at once, and it was not to wait.
    Busy,
    /// It would wait for its own owner's read to end.
    Refused,
    /// The request, or the one it would upgrade, has ended.
    Ended(Ending),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    Released,
    NotHeld(Ending),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Downgraded {
    Downgraded(Grant),
    NotHeld(Ending),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewed {
    Renewed { deadline_ms: u64 },
    NotHeld(Ending),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Withdrawn {
    pub(crate) was: WithdrawnFrom,
    /// Empty unless it was asked for.
    pub(crate) blame: Snapshot,
    /// How many were ahead of it in line.
    pub(crate) ahead: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WithdrawnFrom {
    Held,
    Queued,
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Polled {
    Granted(Grant),
    Queued { wake_ms: u64 },
    NotHeld(Ending),
}

/// How many requests are revoked and not yet given back, whoever revoked them, and when the last of them lapses (0 when
/// there are none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revoking {
    pub(crate) requests: u64,
    pub(crate) deadline_ms: u64,
}

/// A lock as the server sees it. Lists may be cut; the counts are whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) fence: u64,
    /// How many owners hold.
    pub(crate) holders: u64,
    /// How many requests wait.
    pub(crate) waiters: u64,
    pub(crate) holding: Vec<HeldRow>,
    pub(crate) waiting: Vec<WaitRow>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldRow {
    pub(crate) request: RequestId,
    pub(crate) owner: OwnerId,
    pub(crate) mode: Mode,
    pub(crate) since_ms: u64,
    pub(crate) deadline_ms: u64,
    pub(crate) revoked: bool,
    pub(crate) label: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WaitRow {
    pub(crate) request: RequestId,
    pub(crate) owner: OwnerId,
    pub(crate) mode: Mode,
    /// When it asked, in the server's milliseconds.
    pub(crate) since_ms: u64,
    pub(crate) label: String,
}

/// What a backend tells a client unasked. A hint: the truth is in the state before the push is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Push {
    /// These waiting requests are now held.
    Granted {
        now_us: u64,
        grants: Vec<(RequestId, Grant)>,
    },
    /// These held requests are revoked: give them back.
    Revoked { requests: Vec<RequestId> },
}

/// Who a client is, for whoever asks who is in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClientInfo {
    /// The host's name.
    pub host: String,
    /// The process's id on that host.
    pub pid: u32,
    /// The program's file name.
    pub program: String,
    /// The version of relatch it runs.
    pub version: String,
}

impl fmt::Display for ClientInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {}) on {}", self.program, self.pid, self.host)
    }
}

/// A number as a script or a client of ours writes it: `+7` and `07` are none.
pub(crate) fn number_from_wire(text: &str) -> Option<u64> {
    let plain = text == "0" || !text.starts_with(['+', '0']);
    text.parse().ok().filter(|_| plain)
}

pub(crate) fn number_to_wire(number: u64, to: &mut String) {
    to.push_str(itoa::Buffer::new().format(number));
}

pub(crate) fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// How many replicas must know of a hold before its guard is handed out, and how long they may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replicas {
    pub(crate) number: u32,
    pub(crate) within: std::time::Duration,
}
