//! What can be set, with its defaults, and the checks of what a user gives.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};
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
    /// Where the server is: `redis://[[user]:password@]host[:port][/database]`, or `embedded` for a server inside this
    /// process, which excludes nobody outside it.
    pub url: Option<String>,
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
    /// How long the fence of an idle name stays on the server, at least. 1 h.
    #[serde(with = "humantime_serde")]
    pub fence_retention: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            lease: Duration::from_secs(30),
            claim: Duration::from_secs(5),
            patience: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(2),
            idle_ping: Duration::from_secs(5),
            fence_retention: Duration::from_secs(3600),
        }
    }
}

/// Without the URL, which may carry a password.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("url", &self.url.as_ref().map(|_| "…"))
            .field("lease", &self.lease)
            .field("claim", &self.claim)
            .field("patience", &self.patience)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("idle_ping", &self.idle_ping)
            .field("fence_retention", &self.fence_retention)
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
        if self.fence_retention > MAX_LEASE {
            return Err(ErrorKind::Invalid(format!(
                "a fence_retention of {:?} is too long; {MAX_LEASE:?} is the longest",
                self.fence_retention
            ))
            .into());
        }
        Ok(())
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
