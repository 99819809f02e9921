//! Where the server is and how patient to be with it. No I/O; and no password leaves this file but towards the server.

use std::fmt;
use std::time::Duration;

use ::redis::{ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo};

use crate::config::Config;
use crate::error::{Error, ErrorKind};

/// What is accepted, for whoever wrote something else.
pub(super) const FORMS: &str =
    "redis://[[user]:password@]host[:port][/db] or unix:///path/to/socket[?db=n&user=…&pass=…]";

/// How to reach a server, and how long to wait for it.
#[derive(Clone)]
pub(crate) struct RedisOptions {
    pub(crate) url: String,
    /// For a whole link: both connections, the handshakes and the check of the server.
    pub(crate) connect_timeout: Duration,
    /// For one reply. After it the link is taken for dead.
    pub(crate) response_timeout: Duration,
    /// How often a linked server is asked whether it is still there.
    pub(crate) idle_ping: Duration,
    /// Whether to listen for pushes.
    pub(crate) pushes: bool,
}

impl RedisOptions {
    #[cfg(any(test, fuzzing))]
    pub(crate) fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(2),
            idle_ping: Duration::from_secs(5),
            pushes: true,
        }
    }

    pub(crate) fn of(url: String, config: &Config) -> Self {
        Self {
            url,
            connect_timeout: config.connect_timeout,
            response_timeout: config.response_timeout,
            idle_ping: config.idle_ping,
            pushes: config.spin.is_none(),
        }
    }

    pub(super) fn target(&self) -> Result<Target, Error> {
        for (what, value) in [
            ("connect_timeout", self.connect_timeout),
            ("response_timeout", self.response_timeout),
            ("idle_ping", self.idle_ping),
        ] {
            if value.is_zero() {
                return Err(ErrorKind::Invalid(format!("{what} is zero; nothing can be that quick")).into());
            }
        }
        Target::parse(&self.url)
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = Target::parse(&self.url).map_or_else(|_| "(unusable)".to_owned(), |target| target.place);
        f.debug_struct("RedisOptions")
            .field("url", &url)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("idle_ping", &self.idle_ping)
            .finish()
    }
}

/// An address that was understood.
pub(super) struct Target {
    pub(super) address: Address,
    /// User, password, database: what the handshake says. RESP3, as pushes come among replies.
    pub(super) login: RedisConnectionInfo,
    /// The address without credentials, for people.
    pub(super) place: String,
}

#[derive(Clone, Debug)]
pub(super) enum Address {
    Tcp(String, u16),
    #[cfg(unix)]
    Unix(std::path::PathBuf),
    /// Within a simulation.
    #[cfg(feature = "cli")]
    Simulated(std::sync::Arc<dyn super::simulated::Network>),
}

impl Target {
    fn parse(url: &str) -> Result<Self, Error> {
        // The URL is not repeated: whatever could not be parsed may have a password anywhere in it.
        let invalid = |why: &str| -> Error {
            ErrorKind::Invalid(format!(
                "the server's address can't be used: {why}; write {FORMS}"
            ))
            .into()
        };
        let url = url.trim();
        let Some((scheme, _)) = url.split_once("://") else {
            return Err(invalid("it does not begin with a scheme such as redis://"));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "redis" | "valkey" | "unix" | "redis+unix" | "valkey+unix" => {}
            "rediss" | "valkeys" => return Err(invalid("TLS is not supported")),
            _ => {
                return Err(invalid(
                    "its scheme is none of redis, valkey, unix and redis+unix",
                ));
            }
        }
        let info = url.into_connection_info().map_err(|error| {
            let why = if error.kind() == ::redis::ErrorKind::InvalidClientConfig {
                // These are the crate's own words; what was typed is not among them.
                let said = error.to_string();
                let said = said.split(" - ").next().unwrap_or_default();
                match said {
                    "Redis URL did not parse" => {
                        "it is no URL (in user and password write @ : / ? # as %40 %3A %2F %3F %23)"
                            .to_owned()
                    }
                    said => said.to_ascii_lowercase(),
                }
            } else {
                "it is no URL".to_owned()
            };
            invalid(&why)
        })?;
        let login = info.redis_settings().clone();
        if login.db() < 0 {
            return Err(invalid("its database number is negative"));
        }
        let (address, mut place) = match info.addr() {
            ConnectionAddr::Tcp(host, _) if host.is_empty() => return Err(invalid("it names no host")),
            ConnectionAddr::Tcp(_, 0) => return Err(invalid("its port is 0")),
            ConnectionAddr::Tcp(host, port) => {
                let shown = if host.contains(':') {
                    format!("[{host}]")
                } else {
                    host.clone()
                };
                (
                    Address::Tcp(host.clone(), *port),
                    format!("redis://{shown}:{port}"),
                )
            }
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => {
                // As it was typed: a path may have anything in it, such as a newline or a `?`.
                let shown = ::redis::parse_redis_url(url).map(|url| url.path().to_owned());
                (
                    Address::Unix(path.clone()),
                    format!("unix://{}", shown.unwrap_or_default()),
                )
            }
            _ => return Err(invalid("that kind of connection is not supported")),
        };
        if login.db() != 0 {
            place.push_str(&match address {
                Address::Tcp(..) => format!("/{}", login.db()),
                #[cfg(unix)]
                Address::Unix(_) => format!("?db={}", login.db()),
                #[cfg(feature = "cli")]
                Address::Simulated(_) => String::new(),
            });
        }
        Ok(Self {
            address,
            login: login
                .set_protocol(ProtocolVersion::RESP3)
                .set_lib_name("relatch", env!("CARGO_PKG_VERSION")),
            place,
        })
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.place).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Target, Error> {
        RedisOptions::new(url).target()
    }

    #[test]
    fn addresses_are_understood() {
        for (url, place, user, password, db) in [
            ("redis://localhost", "redis://localhost:6379", None, None, 0),
            (
                "redis://10.0.0.7:7000/3",
                "redis://10.0.0.7:7000/3",
                None,
                None,
                3,
            ),
            (
                "redis://:s3cret@cache",
                "redis://cache:6379",
                None,
                Some("s3cret"),
                0,
            ),
            (
                "redis://ann:s3cret@cache:1/2",
                "redis://cache:1/2",
                Some("ann"),
                Some("s3cret"),
                2,
            ),
            (
                "redis://ann:p%40ss%2Fw@cache",
                "redis://cache:6379",
                Some("ann"),
                Some("p@ss/w"),
                0,
            ),
            ("valkey://cache", "redis://cache:6379", None, None, 0),
            ("redis://[::1]:7001", "redis://[::1]:7001", None, None, 0),
            (
                "redis://cache/?protocol=resp2",
                "redis://cache:6379",
                None,
                None,
                0,
            ),
            ("  redis://cache\n", "redis://cache:6379", None, None, 0),
        ] {
            let target = parse(url).unwrap_or_else(|e| panic!("{url}: {e}"));
            assert_eq!(target.place, place);
            assert_eq!(target.login.username(), user, "{url}");
            assert_eq!(target.login.password(), password, "{url}");
            assert_eq!(target.login.db(), db, "{url}");
            assert_eq!(target.login.protocol(), ProtocolVersion::RESP3);
        }
    }

    #[cfg(unix)]
    #[test]
    fn sockets_are_understood() {
        for scheme in ["unix", "redis+unix"] {
            let target = parse(&format!("{scheme}:///run/redis.sock?db=2&user=ann&pass=s3cret")).unwrap();
            assert!(matches!(&target.address, Address::Unix(path) if path.ends_with("run/redis.sock")));
            assert_eq!(target.place, "unix:///run/redis.sock?db=2");
            assert_eq!(target.login.password(), Some("s3cret"));
        }
    }

    #[test]
    fn anything_else_is_invalid_and_told_what_to_write() {
        for url in [
            "",
            "localhost",
            "localhost:6379",
            "http://cache",
            "rediss://cache",
            "redis://",
            "redis:///1",
            "redis://:s3cret@",
            "redis://:s3/cret@cache",
            "redis://cache:seven",
            "redis://cache:0",
            "redis://cache/one",
            "redis://cache/-1",
            "redis://0.0.0.0",
            "redis://cache?protocol=s3cret",
            "unix://",
            "ann:s3cret@cache",
            "s3cret",
            "s3cret://cache",
        ] {
            let error = parse(url).expect_err(url);
            assert!(error.is_invalid(), "{url}: {error}");
            assert!(error.to_string().contains("redis://["), "{url}: {error}");
            assert!(!error.to_string().contains("s3cret"), "{url}: {error}");
            assert!(!format!("{:?}", RedisOptions::new(url)).contains("s3cret"));
        }
    }

    #[test]
    fn debug_hides_credentials() {
        let options = RedisOptions::new("redis://ann:s3cret@cache:7000/1");
        let shown = format!("{options:?} {:?}", options.target().unwrap());
        assert!(shown.contains("redis://cache:7000/1"), "{shown}");
        assert!(!shown.contains("s3cret") && !shown.contains("ann"), "{shown}");
    }

    #[test]
    fn no_patience_at_all_is_invalid() {
        let mut options = RedisOptions::new("redis://cache");
        options.response_timeout = Duration::ZERO;
        assert!(options.target().unwrap_err().is_invalid());
    }
}
