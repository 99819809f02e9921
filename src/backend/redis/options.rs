//! Where the server is and how patient to be with it. No I/O; and no password leaves this file but towards the server.
//!
//! One way to say where: a URL. What its scheme, hosts, path and parameters come to is a [`Target`]; what kind of deployment that is,
//! a [`Where`]. One server is found where the URL says; of the others only the way to find it is said, and each attempt to link
//! finds it anew.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use ::redis::{ProtocolVersion, RedisConnectionInfo};
use percent_encoding::percent_decode_str;
use url::{Host, Url};

use crate::config::{Config, Tls};
use crate::error::{Error, ErrorKind};

/// What is accepted, for whoever wrote something else.
pub(super) const FORMS: &str = "redis://[[user]:password@]host[:port][/db], rediss://… for TLS, \
     unix:///path/to/socket[?db=n&user=…&pass=…], redis+sentinel://[[user]:password@]host[:port],…/primary[/db] or \
     redis-cluster://[[user]:password@]host[:port],…";

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// How to reach a server, and how long to wait for it.
#[derive(Clone)]
pub(crate) struct RedisOptions {
    pub(crate) url: String,
    /// What the URL does not say of TLS.
    pub(crate) tls: Tls,
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
        Self::of(url.into(), &Config::default())
    }

    pub(crate) fn of(url: String, config: &Config) -> Self {
        Self {
            url,
            tls: config.tls.clone(),
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
        Target::parse(&self.url, &self.tls)
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = Target::parse(&self.url, &self.tls)
            .map_or_else(|_| "(unusable)".to_owned(), |target| target.place);
        f.debug_struct("RedisOptions")
            .field("url", &url)
            .field("tls", &self.tls)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("idle_ping", &self.idle_ping)
            .finish()
    }
}

/// An address that was understood.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) at: Where,
    /// User, password, database: what the handshake with a server says. RESP3, as pushes come among replies.
    pub(super) login: RedisConnectionInfo,
    /// For every server and Sentinel of the target, or none.
    pub(super) tls: Option<Tls>,
    /// The address without credentials, for people.
    pub(super) place: String,
    /// Its servers are nodes of a cluster.
    pub(super) cluster: bool,
}

/// What kind of deployment, and where to begin to look for its server.
#[derive(Clone, Debug)]
pub(super) enum Where {
    /// One server that is always in the same place.
    One(Address),
    /// Whichever server most of these Sentinels name as the primary of this name.
    Sentinel(Sentinels),
    /// A cluster, of which these nodes are known.
    #[allow(dead_code, reason = "the nodes are for what is to come")]
    Cluster(Vec<Address>),
}

#[derive(Clone)]
pub(super) struct Sentinels {
    pub(super) hosts: Vec<Address>,
    pub(super) primary: String,
    /// What the handshake with a Sentinel says.
    pub(super) login: RedisConnectionInfo,
}

impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sentinels")
            .field("hosts", &self.hosts)
            .field("primary", &self.primary)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
pub(super) enum Address {
    Tcp(String, u16),
    #[cfg(unix)]
    Unix(PathBuf),
    /// Within a simulation.
    #[cfg(feature = "cli")]
    Simulated(std::sync::Arc<dyn super::simulated::Network>),
}

impl Address {
    /// `host:port`, as it stands in a URL.
    pub(super) fn shown(&self) -> String {
        match self {
            Address::Tcp(host, port) if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tcp(host, port) => format!("{host}:{port}"),
            #[cfg(unix)]
            Address::Unix(path) => path.display().to_string(),
            #[cfg(feature = "cli")]
            Address::Simulated(_) => "simulated".into(),
        }
    }

    /// The same place? Names are compared as they are written.
    pub(super) fn is(&self, other: &Address) -> bool {
        match (self, other) {
            (Address::Tcp(a, b), Address::Tcp(c, d)) => (a, b) == (c, d),
            _ => false,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    One,
    Unix,
    Sentinel,
    Cluster,
}

/// The parameters that a URL may have, and for which kinds.
const PARAMETERS: [(&str, &[Kind]); 10] = [
    ("db", &[Kind::Unix]),
    ("user", &[Kind::Unix]),
    ("pass", &[Kind::Unix]),
    // Other clients' way to ask for what we speak anyway.
    (
        "protocol",
        &[Kind::One, Kind::Unix, Kind::Sentinel, Kind::Cluster],
    ),
    ("ca", &[Kind::One, Kind::Sentinel, Kind::Cluster]),
    ("cert", &[Kind::One, Kind::Sentinel, Kind::Cluster]),
    ("key", &[Kind::One, Kind::Sentinel, Kind::Cluster]),
    ("server_name", &[Kind::One, Kind::Sentinel, Kind::Cluster]),
    ("sentinel_user", &[Kind::Sentinel]),
    ("sentinel_password", &[Kind::Sentinel]),
];

impl Target {
    /// The URL is not repeated in an error: whatever could not be parsed may have a password anywhere in it.
    fn parse(url: &str, tls: &Tls) -> Result<Self, Error> {
        Self::try_parse(url.trim(), tls).map_err(|why| {
            ErrorKind::Invalid(format!(
                "the server's address can't be used: {why}; write {FORMS}"
            ))
            .into()
        })
    }

    fn try_parse(url: &str, from_config: &Tls) -> Result<Self, String> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or("it does not begin with a scheme such as redis://")?;
        let (kind, secure) = kind_of(&scheme.to_ascii_lowercase())
            .ok_or("its scheme is none of redis, rediss, unix, redis+sentinel and redis-cluster")?;

        // Further hosts are no part of a URL: they are taken out, and parsed each by itself.
        let authority_ends = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(authority_ends);
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        let mut hosts = hosts.split(',');
        let first = hosts.next().unwrap_or_default();
        let login = login.map(|login| format!("{login}@")).unwrap_or_default();
        let scheme = if kind == Kind::Unix { "unix" } else { "redis" };
        let url = Url::parse(&format!("{scheme}://{login}{first}{tail}")).map_err(said)?;
        if url.fragment() == Some("insecure") {
            return Err("a server that nobody has vouched for is not to be trusted with a lock: instead of #insecure name the \
                        authority that signed its certificate, ?ca=/path/to/ca.pem"
                .into());
        }
        if url.fragment().is_some() {
            return Err("it has a # in it, which is written %23".into());
        }
        let mut parameters = Parameters::of(&url, kind)?;
        match parameters.take("protocol").as_deref() {
            None | Some("2" | "3" | "resp2" | "resp3") => {}
            Some(_) => return Err("its protocol is neither resp2 nor resp3".into()),
        }

        let tls = Tls {
            ca: parameters
                .take("ca")
                .map(PathBuf::from)
                .or(from_config.ca.clone()),
            cert: parameters
                .take("cert")
                .map(PathBuf::from)
                .or(from_config.cert.clone()),
            key: parameters
                .take("key")
                .map(PathBuf::from)
                .or(from_config.key.clone()),
            server_name: parameters.take("server_name").or(from_config.server_name.clone()),
        };
        let tls = match (secure, tls == Tls::default()) {
            (true, _) => Some(tls),
            (false, true) => None,
            (false, false) => {
                return Err(
                    "it has settings for TLS, but not a scheme for it: rediss://, rediss+sentinel:// or \
                            rediss-cluster://"
                        .into(),
                );
            }
        };
        #[cfg(feature = "tls")]
        if let Some(tls) = &tls {
            super::tls::connector(tls)?;
        }
        #[cfg(not(feature = "tls"))]
        if tls.is_some() {
            return Err("this program was built without relatch's feature `tls`: turn it on".into());
        }

        let mut login = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("relatch", env!("CARGO_PKG_VERSION"));
        let user = match parameters.take("user") {
            Some(user) => user,
            None => decoded(url.username(), "user")?,
        };
        if !user.is_empty() {
            login = login.set_username(user);
        }
        let password = match parameters.take("pass") {
            Some(password) => Some(password),
            None => url.password().map(|p| decoded(p, "password")).transpose()?,
        };
        if let Some(password) = password {
            login = login.set_password(password);
        }

        let listed = |port| -> Result<Vec<Address>, String> {
            let mut all = vec![host_of(&url, port)?];
            for host in hosts.clone() {
                let url = Url::parse(&format!("redis://{host}")).map_err(said)?;
                if !matches!(url.path(), "" | "/") || !url.username().is_empty() || url.password().is_some() {
                    return Err("one of its hosts is none".into());
                }
                let host = host_of(&url, port)?;
                // One that is named twice is not two that agree.
                if !all.iter().any(|known| host.is(known)) {
                    all.push(host);
                }
            }
            Ok(all)
        };
        let secured = if secure { "rediss" } else { "redis" };
        let together = |all: &[Address]| all.iter().map(Address::shown).collect::<Vec<_>>().join(",");
        let path = url.path().trim_matches('/');
        let (at, mut place, db) = match kind {
            Kind::Unix => {
                #[cfg(not(unix))]
                return Err("there are no unix sockets on this system".into());
                #[cfg(unix)]
                {
                    let path = url.to_file_path().ok().filter(|path| path.parent().is_some());
                    let path = path.ok_or("it names no socket")?;
                    // As it was typed: a path may have anything in it, such as a newline or a `?`.
                    let place = format!("unix://{}", url.path());
                    (Where::One(Address::Unix(path)), place, parameters.take("db"))
                }
            }
            Kind::One => {
                if hosts.clone().next().is_some() {
                    return Err(
                        "it names several hosts: say whether they are Sentinels (redis+sentinel://…) or nodes of a cluster \
                         (redis-cluster://…)"
                            .into(),
                    );
                }
                let address = host_of(&url, PORT)?;
                let place = format!("{secured}://{}", address.shown());
                (Where::One(address), place, Some(path.to_owned()))
            }
            Kind::Sentinel => {
                let (primary, db) = path.split_once('/').unwrap_or((path, ""));
                let primary = decoded(primary, "primary's name")?;
                if primary.is_empty() || primary.chars().any(char::is_control) {
                    return Err("it does not say by what name the Sentinels know the primary".into());
                }
                let hosts = listed(SENTINEL_PORT)?;
                // As it was typed, for the same reason.
                let typed = path.split('/').next().unwrap_or_default();
                let place = format!("{secured}+sentinel://{}/{typed}", together(&hosts));
                let mut login = RedisConnectionInfo::default()
                    .set_protocol(ProtocolVersion::RESP3)
                    .set_skip_set_lib_name();
                if let Some(user) = parameters.take("sentinel_user") {
                    login = login.set_username(user);
                }
                if let Some(password) = parameters.take("sentinel_password") {
                    login = login.set_password(password);
                }
                let sentinels = Sentinels {
                    hosts,
                    primary,
                    login,
                };
                (Where::Sentinel(sentinels), place, Some(db.to_owned()))
            }
            Kind::Cluster => {
                if !matches!(path, "" | "0") {
                    return Err("a cluster has one database, number 0".into());
                }
                let nodes = listed(PORT)?;
                let place = format!("{secured}-cluster://{}", together(&nodes));
                (Where::Cluster(nodes), place, None)
            }
        };
        let db = match db.as_deref() {
            None | Some("") => 0,
            Some(db) => db.parse::<u32>().map_err(|_| "its database is no number")?,
        };
        if db != 0 {
            login = login.set_db(i64::from(db));
            place.push_str(&if kind == Kind::Unix {
                format!("?db={db}")
            } else {
                format!("/{db}")
            });
        }
        Ok(Self {
            at,
            login,
            tls,
            place,
            cluster: kind == Kind::Cluster,
        })
    }

    /// One server of this target: the same login, the same TLS.
    pub(super) fn server(&self, address: Address) -> Target {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        Target {
            place: format!("{scheme}://{}", address.shown()),
            at: Where::One(address),
            login: self.login.clone(),
            tls: self.tls.clone(),
            cluster: self.cluster,
        }
    }
}

/// The kind of deployment, and whether TLS.
fn kind_of(scheme: &str) -> Option<(Kind, bool)> {
    let (family, kind) = match scheme.split_once(['+', '-']) {
        Some((family, "sentinel")) => (family, Kind::Sentinel),
        Some((family, "cluster")) => (family, Kind::Cluster),
        Some((family, "unix")) => (family, Kind::Unix),
        Some(_) => return None,
        None if scheme == "unix" => return Some((Kind::Unix, false)),
        None => (scheme, Kind::One),
    };
    match family {
        "redis" | "valkey" => Some((kind, false)),
        "rediss" | "valkeys" if kind != Kind::Unix => Some((kind, true)),
        _ => None,
    }
}

fn said(error: url::ParseError) -> String {
    match error {
        url::ParseError::EmptyHost => "it names no host".into(),
        _ => "it is no URL (in user and password write @ : / ? # as %40 %3A %2F %3F %23)".into(),
    }
}

fn host_of(url: &Url, port: u16) -> Result<Address, String> {
    let host = match url.host() {
        Some(Host::Domain(name)) => name.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
        None => String::new(),
    };
    if host.is_empty() || host.chars().any(char::is_control) {
        return Err("it names no host".into());
    }
    if let Ok(address) = host.parse::<std::net::IpAddr>()
        && address.is_unspecified()
    {
        return Err("0.0.0.0 and :: are where a server listens, not where it is".into());
    }
    match url.port().unwrap_or(port) {
        0 => Err("its port is 0".into()),
        port => Ok(Address::Tcp(host, port)),
    }
}

fn decoded(text: &str, what: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8();
    Ok(text.map_err(|_| format!("its {what} is not UTF-8"))?.into_owned())
}

/// What stands behind the `?`. Each is taken by whom it concerns.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn of(url: &Url, kind: Kind) -> Result<Self, String> {
        let known = || {
            PARAMETERS
                .iter()
                .filter(|(_, kinds)| kinds.contains(&kind))
                .map(|(name, _)| *name)
        };
        let all: Vec<(String, String)> = url
            .query_pairs()
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        for (at, (name, _)) in all.iter().enumerate() {
            if !known().any(|known| known == name) {
                let known = known().collect::<Vec<_>>().join(", ");
                return Err(format!("it has a parameter that is none of {known}"));
            }
            if all[..at].iter().any(|(before, _)| before == name) {
                return Err("it has the same parameter twice".into());
            }
        }
        Ok(Self(all))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1)
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
            assert!(
                matches!(&target.at, Where::One(Address::Unix(path)) if path.ends_with("run/redis.sock"))
            );
            assert_eq!(target.place, "unix:///run/redis.sock?db=2");
            assert_eq!(target.login.password(), Some("s3cret"));
        }
    }

    #[test]
    fn sentinels_and_clusters_are_understood() {
        let target = parse(
            "redis+sentinel://ann:s3cret@one,[::1]:7000,three:1/my%20primary/2?sentinel_user=bob&sentinel_password=t0p",
        )
        .unwrap();
        assert_eq!(
            target.place,
            "redis+sentinel://one:26379,[::1]:7000,three:1/my%20primary/2"
        );
        assert_eq!(
            (
                target.login.username(),
                target.login.password(),
                target.login.db()
            ),
            (Some("ann"), Some("s3cret"), 2)
        );
        let Where::Sentinel(sentinels) = &target.at else {
            panic!("{target:?}")
        };
        assert_eq!(sentinels.primary, "my primary");
        assert_eq!(
            (sentinels.login.username(), sentinels.login.password()),
            (Some("bob"), Some("t0p"))
        );
        assert!(!format!("{target:?} {:?}", target.at).contains("t0p"));

        for url in [
            "redis-cluster://:pw@a,b:7,c",
            "redis+cluster://:pw@a,b:7,c",
            "valkey-cluster://:pw@a,b:7,c/0",
        ] {
            let target = parse(url).unwrap_or_else(|e| panic!("{url}: {e}"));
            assert_eq!(target.place, "redis-cluster://a:6379,b:7,c:6379");
            assert_eq!(target.login.password(), Some("pw"));
            let Where::Cluster(nodes) = &target.at else {
                panic!("{target:?}")
            };
            assert!(nodes[1].is(&Address::Tcp("b".into(), 7)));
            assert_eq!(target.server(nodes[1].clone()).login.password(), Some("pw"));
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn tls_is_understood_and_never_half() {
        for (url, place) in [
            ("rediss://cache", "rediss://cache:6379"),
            ("valkeys://ann:pw@cache:7/3", "rediss://cache:7/3"),
            (
                "rediss+sentinel://a,b/main",
                "rediss+sentinel://a:26379,b:26379/main",
            ),
            ("rediss-cluster://a,b", "rediss-cluster://a:6379,b:6379"),
            (
                "rediss://10.0.0.7?server_name=cache.example",
                "rediss://10.0.0.7:6379",
            ),
        ] {
            let target = parse(url).unwrap_or_else(|e| panic!("{url}: {e}"));
            assert_eq!(target.place, place);
            assert!(target.tls.is_some(), "{url}");
        }
        for (url, remedy) in [
            ("rediss://cache#insecure", "?ca="),
            ("rediss://cache?ca=/nowhere/ca.pem", "/nowhere/ca.pem"),
            ("rediss://cache?cert=/nowhere/cert.pem", "without its key"),
            ("rediss://cache?key=/nowhere/key.pem", "without its cert"),
            ("rediss://cache?server_name=a%20b", "neither a host's name"),
            ("redis://cache?ca=/etc/ca.pem", "rediss://"),
        ] {
            let error = parse(url).expect_err(url);
            assert!(
                error.is_invalid() && error.to_string().contains(remedy),
                "{url}: {error}"
            );
        }
        // What a configuration says of TLS is not left unused in silence either.
        let mut options = RedisOptions::new("redis://cache");
        options.tls.server_name = Some("cache.example".into());
        assert!(options.target().unwrap_err().to_string().contains("rediss://"));
    }

    #[test]
    fn anything_else_is_invalid_and_told_what_to_write() {
        for url in [
            "",
            "localhost",
            "localhost:6379",
            "http://cache",
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
            "redis://a,b",
            "redis://cache?s3cret",
            "redis://cache?db=1",
            "redis://cache#s3cret",
            "unix:///run/redis.sock?db=1&db=2",
            "redis+sentinel://a,b",
            "redis+sentinel://a,b/",
            "redis+sentinel://a,,b/main",
            "redis+sentinel://a,ann:s3cret@b:x/main",
            "redis+sentinel://a:0/main",
            "redis+sentinel://a/main/one",
            "redis-cluster://",
            "redis-cluster://a,b/1",
            "redis-cluster://a,b?sentinel_user=s3cret",
            "rediss+unix:///run/redis.sock",
            "redis+s3cret://cache",
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
