//! What can be set, with its defaults, and the checks of what a user gives.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};
use crate::protocol::{ClientId, Replicas};
use crate::state::Tuning;

/// The shortest lease and claim.
const MIN_LEASE: Duration = Duration::from_millis(10);
/// The longest lease.
const MAX_LEASE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How a client works. Every field has a default: begin with [`Config::default`] and set fields, or read it with serde.
/// Durations read and write like `"30s"`.
///
/// ```
/// let config: relatch::Config = serde_json::from_str(r#"{ "url": "redis://127.0.0.1:6379", "lease": "10s" }"#)?;
/// assert_eq!(config.lease, std::time::Duration::from_secs(10));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Where the server is, or `embedded` for a server inside this process, which excludes nobody outside it.
    ///
    /// | what is there | the address |
    /// |---|---|
    /// | one server | `redis://[[user]:password@]host[:port][/database]` |
    /// | one server, over TLS | `rediss://…`, with `?ca=…&cert=…&key=…&server_name=…` for what [`Tls`] would say |
    /// | a unix socket | `unix:///path/to/socket[?db=n&user=…&pass=…]` |
    /// | Sentinels | `redis+sentinel://[[user]:password@]host[:port],host[:port],…/primary-name[/database]`, with `?sentinel_user=…&sentinel_password=…` where the Sentinels want that; `rediss+sentinel://` for TLS |
    /// | a cluster | `redis-cluster://[[user]:password@]host[:port],host[:port],…`; `rediss-cluster://` for TLS |
    ///
    /// User, password and path are percent-encoded: `@ : / ? #` are written `%40 %3A %2F %3F %23`.
    pub url: Option<String>,
    /// TLS, for what the address does not say of it. It takes an address with a scheme for TLS, such as `rediss://`.
    pub tls: Tls,
    /// The lease of a hold that names none, renewed every third of it for as long as its guard lives. When the process dies
    /// the lock is free after at most this. 30 s.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long a hold lasts that was granted to a waiter, until its client is known to have heard of it; and how long a waiter is
    /// believed in without a sign of life. What a dead client costs the others. All clients of a name should agree. 5 s.
    #[serde(with = "humantime_serde")]
    pub claim: Duration,
    /// How long an acquisition without a timeout goes on while the server can't be reached. 30 s.
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
    /// How long linking to a server may take. 5 s.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long a server may take to answer before the link is taken for dead and made anew. 2 s.
    #[serde(with = "humantime_serde")]
    pub response_timeout: Duration,
    /// How often an idle link is tried. 5 s.
    #[serde(with = "humantime_serde")]
    pub idle_ping: Duration,
    /// For a server, or a proxy in between, that has no pub/sub: who waits is not told, but asks, with this back-off. Its place is on
    /// the server all the same, so nobody passes it. None: the client is told by a push, which is quicker and costs less.
    pub spin: Option<Backoff>,
    /// How many replicas must have acknowledged a hold before its guard is handed out. None: 0. See
    /// [`Acquire::replicas`](crate::Acquire::replicas).
    pub replicas: u32,
    /// How long those replicas may take; a hold that too few have acknowledged by then is given back. 1 s.
    #[serde(with = "humantime_serde")]
    pub replicas_within: Duration,
    /// How long the fence of an idle name stays on the server, at least. 1 h.
    #[serde(with = "humantime_serde")]
    pub fence_retention: Duration,
    /// Whether an acquisition that would close a circle of owners that wait for each other, over several names, fails with
    /// [`Error::is_deadlock`] and leaves the line. `false`.
    ///
    /// An acquisition of such a client that has waited for 50 ms looks at every name that somebody waits for, and again, ever more rarely, up to every 5 s:
    /// each time a walk through the server's keys. Of the requests in a circle the youngest gives up, within some 200 ms. Where that one's client was not told to
    /// look, the next youngest does, 400 ms later.
    pub refuse_deadlocks: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            tls: Tls::default(),
            lease: Duration::from_secs(30),
            claim: Duration::from_secs(5),
            patience: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(2),
            idle_ping: Duration::from_secs(5),
            spin: None,
            replicas: 0,
            replicas_within: Duration::from_secs(1),
            fence_retention: Duration::from_secs(3600),
            refuse_deadlocks: false,
        }
    }
}

/// How a server proves who it is, and how this client does. Paths of PEM files; they are read whenever a connection is made, so that a
/// certificate can be replaced while the program runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Tls {
    /// The authorities that a server's certificate must be signed by. Without it, those that the system trusts.
    pub ca: Option<PathBuf>,
    /// The client's certificate, with what leads to its authority, for servers that want one. It needs a [`key`](Self::key).
    pub cert: Option<PathBuf>,
    /// The key to [`cert`](Self::cert), not encrypted.
    pub key: Option<PathBuf>,
    /// The name that must be in a server's certificate, where that is not the host of the address: for Sentinels and clusters, which
    /// name servers by IP address.
    pub server_name: Option<String>,
}

/// Without the URL, which may carry a password.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("url", &self.url.as_ref().map(|_| "…"))
            .field("tls", &self.tls)
            .field("lease", &self.lease)
            .field("claim", &self.claim)
            .field("patience", &self.patience)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("idle_ping", &self.idle_ping)
            .field("spin", &self.spin)
            .field("replicas", &self.replicas)
            .field("replicas_within", &self.replicas_within)
            .field("fence_retention", &self.fence_retention)
            .field("refuse_deadlocks", &self.refuse_deadlocks)
            .finish()
    }
}

impl Config {
    pub(crate) fn check(&self) -> Result<(), Error> {
        check_lease("lease", self.lease)?;
        check_lease("claim", self.claim)?;
        for (what, value) in [
            ("patience", self.patience),
            ("connect_timeout", self.connect_timeout),
            ("response_timeout", self.response_timeout),
            ("idle_ping", self.idle_ping),
        ] {
            if value > MAX_LEASE {
                return Err(ErrorKind::Invalid(format!(
                    "a {what} of {value:?} is too long; {MAX_LEASE:?} is the longest"
                ))
                .into());
            }
            if value.is_zero() {
                return Err(ErrorKind::Invalid(format!(
                    "{what} is zero; nothing could be done in that time"
                ))
                .into());
            }
        }
        if let Some(spin) = self.spin {
            spin.check()?;
        }
        if self.replicas > 0 {
            check_replicas(self.replicas_within)?;
        }
        if self.fence_retention > MAX_LEASE {
            return Err(ErrorKind::Invalid(format!(
                "a fence_retention of {:?} is too long; {MAX_LEASE:?} is the longest",
                self.fence_retention
            ))
            .into());
        }
        Ok(())
    }

    /// Who such a client is.
    pub(crate) fn client(&self) -> ClientId {
        match self.spin {
            Some(_) => ClientId::quiet(),
            None => ClientId::random(),
        }
    }

    pub(crate) fn replicas_wanted(&self) -> Option<Replicas> {
        (self.replicas > 0).then_some(Replicas {
            number: self.replicas,
            within: self.replicas_within,
        })
    }

    pub(crate) fn tuning(&self) -> Tuning {
        Tuning {
            claim_ms: crate::protocol::millis(self.claim),
            // Longer than any call is repeated: until the lease that it is about has run out.
            mark_ms: 120_000,
            retention_ms: crate::protocol::millis(self.fence_retention),
        }
    }
}

/// How often a waiter asks that is not told: first after [`first`](Self::first), then after twice as long each time, up to [`most`](Self::most); each time a
/// random half of it earlier, so that those who wait do not ask all at once. At least three times per [`claim`](Config::claim), as it must show that
/// it is there. The default begins with 5 ms and ends at 500 ms.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use relatch::{Backoff, Relatch};
/// use std::time::Duration;
///
/// let relatch = Relatch::builder()
///     .url("embedded") // or a server whose proxy does not know SUBSCRIBE
///     .spin(Backoff::new(Duration::from_millis(10), Duration::from_millis(200)))
///     .connect()
///     .await?;
/// drop(relatch.rwlock("catalog")?.write().await?);
/// # Ok::<(), relatch::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Backoff {
    /// At least 1 ms.
    #[serde(with = "humantime_serde")]
    pub first: Duration,
    /// At least as long as the first.
    #[serde(with = "humantime_serde")]
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(5), Duration::from_millis(500))
    }
}

impl Backoff {
    /// From so long to so long.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most }
    }

    pub(crate) fn check(self) -> Result<(), Error> {
        if self.first < Duration::from_millis(1) || self.most < self.first || self.most > MAX_LEASE {
            return Err(ErrorKind::Invalid(format!(
                "a back-off from {:?} to {:?} can't be: the first is 1 ms or longer, the most no shorter than that and {MAX_LEASE:?} at most",
                self.first, self.most
            ))
            .into());
        }
        Ok(())
    }

    /// How long to rest after so many questions.
    pub(crate) fn rest(self, asked: u32) -> Duration {
        let whole = self
            .first
            .saturating_mul(1_u32.checked_shl(asked).unwrap_or(u32::MAX))
            .min(self.most);
        // A random part of 1024.
        #[allow(clippy::cast_possible_truncation, reason = "ten bits")]
        let part = (crate::entropy::bits() & 1023) as u32;
        whole - whole / 2 * part / 1024
    }
}

pub(crate) fn check_replicas(within: Duration) -> Result<(), Error> {
    if within < Duration::from_millis(1) || within > MAX_LEASE {
        return Err(ErrorKind::Invalid(format!(
            "replicas can't be given {within:?} to acknowledge a hold: 1 ms is the shortest, {MAX_LEASE:?} the longest"
        ))
        .into());
    }
    Ok(())
}

pub(crate) fn check_lease(what: &str, lease: Duration) -> Result<(), Error> {
    if lease < MIN_LEASE {
        return Err(ErrorKind::Invalid(format!(
            "a {what} of {lease:?} is too short; {MIN_LEASE:?} is the shortest"
        ))
        .into());
    }
    if lease > MAX_LEASE {
        return Err(ErrorKind::Invalid(format!(
            "a {what} of {lease:?} is too long; {MAX_LEASE:?} is the longest; leave the lease out for a hold that is renewed"
        ))
        .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use super::*;

    #[test]
    fn a_backoff_doubles_up_to_its_most_less_a_random_half() {
        let (first, most) = (Duration::from_millis(10), Duration::from_millis(300));
        let backoff = Backoff::new(first, most);
        for (asked, whole) in [
            (0, 10),
            (1, 20),
            (4, 160),
            (5, 300),
            (31, 300),
            (32, 300),
            (u32::MAX, 300),
        ] {
            let whole = Duration::from_millis(whole);
            let rests: Vec<_> = (0..200).map(|_| backoff.rest(asked)).collect();
            assert!(
                rests.iter().all(|rest| (whole / 2..=whole).contains(rest)),
                "{asked}: {rests:?}"
            );
            assert!(
                rests.iter().any(|rest| *rest != rests[0]),
                "there is chance in it"
            );
        }
    }

    #[test]
    fn a_backoff_that_cannot_be_is_an_error() {
        let ms = Duration::from_millis;
        for (first, most) in [(ms(0), ms(5)), (ms(10), ms(5)), (ms(10), Duration::MAX)] {
            let config = Config {
                spin: Some(Backoff::new(first, most)),
                ..Config::default()
            };
            assert!(config.check().unwrap_err().is_invalid());
        }
        let config: Config = serde_json::from_str(r#"{ "spin": { "first": "2ms" } }"#).unwrap();
        assert_eq!(config.spin.unwrap(), Backoff::new(ms(2), ms(500)));
    }
}
