//! Whether a server will do: its version, its mode, its role, its memory, and what this user may do on it.
//!
//! Asked on every new link, in two round trips, as any of it may have changed. What can't be worked with is an error that names the
//! remedy; what can, but not well, is a *remark*: see [`Relatch::remarks`](crate::Relatch::remarks). What a server does not let us ask is
//! taken for fine: then the first call tells.

use std::sync::LazyLock;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, RedisError, ServerError, ServerErrorKind, Value};

use crate::backend::redis::dial::{OLDEST, Peer};
use crate::backend::redis::refusal::{CHANNELS, KEYS, classify, missing_rule, of_a_command, printable};
use crate::backend::redis::{scripts, slots};
use crate::error::Error;
use crate::protocol::ClientId;

/// Asks for the rights that the scripts need.
const RIGHTS: &str = include_str!("../../../scripts/rights.lua");
static RIGHTS_HASH: LazyLock<String> = LazyLock::new(|| ::redis::Script::new(RIGHTS).get_hash().to_owned());

/// Since when a cluster's slots have channels of their own.
const SHARDS: (u64, u64) = (7, 0);

/// What was found out about a server.
#[derive(Debug)]
pub(super) struct Fitness {
    pub(super) mode: Mode,
    /// As a node of a cluster it has channels of slots.
    pub(super) shards: bool,
    /// Scripts are sent whole with each call: it does not take them by their hash.
    pub(super) by_source: bool,
    /// Messages may be sent: the right to.
    pub(super) publishes: bool,
    /// What a cluster knows this node by.
    pub(super) node: Option<String>,
    pub(super) remarks: Vec<String>,
}

/// Asks. `cluster`: whether a node of a cluster is what is looked for.
pub(super) async fn check(
    peer: &Peer,
    connection: &mut MultiplexedConnection,
    client: ClientId,
    cluster: bool,
) -> Result<Fitness, Error> {
    // In one go: on a long way to the server each round trip counts. Every script is loaded ahead, so that no call has to carry its
    // source; a server that forbids it, or forgets them later, is sent the source with the call.
    let mut questions = ::redis::Pipeline::with_capacity(5 + scripts::ALL.len());
    if cluster {
        // Each of a cluster's nodes is asked for itself: what one forbids another may allow. The first holds for the next command only.
        questions.cmd("ASKING");
        questions.cmd("CLUSTER").arg("SLOTS");
        questions.cmd("CLUSTER").arg("NODES");
    }
    questions.cmd("INFO");
    for script in scripts::ALL {
        questions.cmd("SCRIPT").arg("LOAD").arg(script.source);
    }
    questions.cmd("SCRIPT").arg("LOAD").arg(RIGHTS);
    let answers = connection
        .send_packed_commands(&questions, 0, questions.len())
        .await
        .map_err(|error| peer.handshake_failed(&error))?;
    let mut answers = answers.into_iter();
    let mut forbidden: Vec<String> = Vec::new();
    let mut node = None;
    if cluster {
        let of_cluster: Vec<Value> = answers.by_ref().take(3).collect();
        for answer in &of_cluster {
            if let Value::ServerError(error) = answer
                && error.kind() == Some(ServerErrorKind::NoPerm)
            {
                forbidden.push(missing_rule(error.details().unwrap_or_default()));
            }
        }
        node = of_cluster.last().and_then(slots::myself);
    }
    let mut remarks = Vec::new();
    let info = match answers.next() {
        Some(Value::ServerError(error)) if error.kind() == Some(ServerErrorKind::NoPerm) => None,
        Some(Value::ServerError(error)) => return Err(classify(&peer.place, "INFO", &error).into_error()),
        Some(Value::BulkString(info)) => Some(String::from_utf8_lossy(&info).into_owned()),
        Some(Value::VerbatimString { text, .. }) => Some(text),
        _ => return Err(peer.strange("it does not know INFO")),
    };
    let (mode, shards) = match info {
        None => {
            remarks.push(
                "this user may not ask for the server's version and role: give it the right +info".into(),
            );
            (Mode::Unknown, true)
        }
        Some(info) => {
            let server = ServerInfo::parse(&info).ok_or_else(|| peer.strange("its INFO has no version"))?;
            server.judge(peer, cluster)?;
            remarks.extend(server.remark());
            (server.mode, server.is_at_least(SHARDS))
        }
    };
    if let Some(Value::ServerError(error)) = answers.next() {
        tracing::debug!(server = %peer.place, %error, "the scripts are not loaded ahead");
    }
    let rights = rights(peer, connection, client, cluster, shards).await?;
    forbidden.extend(rights.missing.iter().map(|(command, what)| rule(command, what)));
    forbidden.sort_unstable();
    forbidden.dedup();
    // Without messages it works, if slowly.
    let publishes = !rights
        .missing
        .iter()
        .any(|(command, _)| matches!(command.as_str(), "PUBLISH" | "SPUBLISH"));
    if !publishes {
        forbidden.retain(|rule| !matches!(rule.as_str(), "+publish" | "+spublish" | CHANNELS));
    }
    if !forbidden.is_empty() {
        return Err(peer.unfit(format_args!(
            "does not let this user do what relatch needs: ACL SETUSER <user> {}",
            forbidden.join(" ")
        )));
    }
    if rights.by_source {
        remarks.push(
            "scripts are sent whole with every call, some 50 kB, as the server does not take them by their hash: give the user the rights \
             +evalsha +script|load"
                .into(),
        );
    }
    Ok(Fitness {
        mode,
        shards,
        by_source: rights.by_source,
        publishes,
        node,
        remarks,
    })
}

struct Rights {
    /// A command, and what of it is missing.
    missing: Vec<(String, String)>,
    by_source: bool,
}

/// Which commands are forbidden, and how scripts are to be sent.
async fn rights(
    peer: &Peer,
    connection: &mut MultiplexedConnection,
    client: ClientId,
    cluster: bool,
    shards: bool,
) -> Result<Rights, Error> {
    let key = format!("relatch:1:probe:{}", client.wire());
    let channel = if cluster && shards {
        slots::channel(slots::slot_of_plain(&key), client)
    } else {
        scripts::channel(client)
    };
    let channel = format!("{channel}:probe");
    let ask = |verb: &str, script: &str| {
        let mut ask = Cmd::new();
        ask.arg(verb).arg(script);
        if cluster {
            // With a key most nodes would send us to another one, and say nothing of themselves.
            ask.arg(0).arg(&channel).arg(&key);
        } else {
            ask.arg(1).arg(&key).arg(&channel);
        }
        ask
    };
    let by_hash = connection
        .send_packed_command(&ask("EVALSHA", &RIGHTS_HASH))
        .await;
    let refused = match told(peer, by_hash)? {
        Ok(missing) => {
            return Ok(Rights {
                missing,
                by_source: false,
            });
        }
        Err(refused) => refused,
    };
    let by_source = connection.send_packed_command(&ask("EVAL", RIGHTS)).await;
    match told(peer, by_source)? {
        // It took the hash for one it does not know: so it takes hashes.
        Ok(missing) => Ok(Rights {
            missing,
            by_source: refused.kind() != Some(ServerErrorKind::NoScript),
        }),
        Err(_) if refused.kind() == Some(ServerErrorKind::NoScript) => Err(peer.unfit(
            "does not let this user bring its scripts, and does not have them yet: ACL SETUSER <user> +script|load",
        )),
        Err(_) => Err(peer.unfit(
            "does not let this user run scripts: ACL SETUSER <user> +evalsha +script|load, or +eval",
        )),
    }
}

/// What the script said; or that this way to send one is not open.
fn told(
    peer: &Peer,
    reply: Result<Value, RedisError>,
) -> Result<Result<Vec<(String, String)>, ServerError>, Error> {
    match reply.map_err(|error| peer.handshake_failed(&error))? {
        Value::Array(words) => {
            let mut words = words.into_iter().filter_map(|word| match word {
                Value::BulkString(word) => String::from_utf8(word).ok(),
                Value::SimpleString(word) => Some(word),
                _ => None,
            });
            let mut missing = Vec::new();
            while let (Some(command), Some(what)) = (words.next(), words.next()) {
                missing.push((command, what));
            }
            Ok(Ok(missing))
        }
        Value::ServerError(error) => {
            let details = error.details().unwrap_or_default();
            let closed = match error.kind() {
                Some(ServerErrorKind::NoScript) => true,
                Some(ServerErrorKind::NoPerm) => of_a_command(details),
                _ => details.starts_with("unknown command"),
            };
            if closed {
                return Ok(Err(error));
            }
            match error.code() {
                // Its first call will tell, or the calls that give back work all the same.
                "OOM" => Ok(Ok(Vec::new())),
                _ => Err(classify(&peer.place, "the scripts", &error).into_error()),
            }
        }
        // What that is, the first call tells.
        _ => Ok(Ok(Vec::new())),
    }
}

/// What an ACL must say besides.
fn rule(command: &str, what: &str) -> String {
    match what {
        "key" => KEYS.to_owned(),
        "channel" => CHANNELS.to_owned(),
        _ => format!("+{}", printable(command).to_ascii_lowercase()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Standalone,
    Sentinel,
    Cluster,
    /// Something that does not say.
    Unknown,
}

/// What `INFO` says that matters here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ServerInfo {
    pub(super) version: String,
    valkey: bool,
    mode: Mode,
    replica: bool,
    loading: bool,
    /// The policy by which it may evict, if it may.
    evicts: Option<String>,
}

impl ServerInfo {
    /// `None` when this is no INFO.
    pub(super) fn parse(info: &str) -> Option<Self> {
        let field = |name: &str| {
            info.lines()
                .filter_map(|line| line.trim().split_once(':'))
                .find_map(|(key, value)| (key == name).then_some(value))
        };
        let valkey = field("valkey_version");
        let version = printable(valkey.or(field("redis_version"))?);
        version.split('.').next()?.parse::<u64>().ok()?;
        let limited = field("maxmemory").is_some_and(|limit| limit != "0");
        Some(Self {
            version,
            valkey: valkey.is_some(),
            mode: match field("redis_mode").or(field("server_mode")) {
                Some("standalone") => Mode::Standalone,
                Some("sentinel") => Mode::Sentinel,
                Some("cluster") => Mode::Cluster,
                _ => Mode::Unknown,
            },
            replica: field("role") == Some("slave"),
            loading: field("loading") == Some("1"),
            evicts: field("maxmemory_policy")
                .filter(|policy| limited && *policy != "noeviction")
                .map(printable),
        })
    }

    fn is_at_least(&self, wanted: (u64, u64)) -> bool {
        let mut parts = self
            .version
            .split('.')
            .map(|part| part.parse::<u64>().unwrap_or(0));
        let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        // Valkey begins where Redis 7.2 was.
        self.valkey || version >= wanted
    }

    pub(super) fn is_too_old(&self) -> bool {
        !self.is_at_least(OLDEST)
    }

    fn judge(&self, peer: &Peer, cluster: bool) -> Result<(), Error> {
        if self.is_too_old() {
            return Err(peer.too_old(format_args!("Redis {}", self.version)));
        }
        match (self.mode, cluster) {
            (Mode::Sentinel, _) => {
                return Err(peer.unfit(
                    "is a Sentinel, which keeps no data: write redis+sentinel://…/ and the name of the primary that it watches",
                ));
            }
            (Mode::Cluster, false) => {
                return Err(
                    peer.unfit("is a node of a cluster: write redis-cluster://… and some of its nodes")
                );
            }
            (Mode::Standalone, true) => {
                return Err(peer.unfit("is not a node of a cluster: write redis://… for a single server"));
            }
            _ => {}
        }
        if self.loading {
            return Err(peer.unreachable("is still loading its data"));
        }
        if self.replica && !cluster {
            return Err(peer.unreachable(
                "is a read-only replica: name its primary, or let Sentinels find it (redis+sentinel://…)",
            ));
        }
        Ok(())
    }

    fn remark(&self) -> Option<String> {
        let policy = self.evicts.as_ref()?;
        Some(format!(
            "the server may evict locks when its memory is full (maxmemory-policy {policy}), and then give them to somebody else: \
             CONFIG SET maxmemory-policy noeviction"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        let old = |info: &str| ServerInfo::parse(info).map(|info| info.is_too_old());
        assert_eq!(
            old("# Server\r\nredis_version:6.0.16\r\nredis_mode:standalone\r\n"),
            Some(true)
        );
        assert_eq!(old("redis_version:5.0.14"), Some(true));
        assert_eq!(old("redis_version:6.2.0"), Some(false));
        assert_eq!(old("redis_version:7.0.15\r\n"), Some(false));
        assert_eq!(old("redis_version:10.0.0"), Some(false));
        assert_eq!(old("redis_version:255.255.255"), Some(false));
        assert_eq!(
            old("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\n"),
            Some(false)
        );
        assert_eq!(old("redis_version:7.2.4\r\nvalkey_version:1.0"), Some(false));
        assert_eq!(old("redis_version:new"), None);
        assert_eq!(old("<html>"), None);
        assert_eq!(old(""), None);
    }

    #[test]
    fn modes_are_told_apart() {
        let mode = |info: &str| ServerInfo::parse(info).unwrap().mode;
        assert_eq!(
            mode("redis_version:7.0.0\r\nredis_mode:standalone"),
            Mode::Standalone
        );
        assert_eq!(mode("redis_version:7.0.0\r\nredis_mode:cluster"), Mode::Cluster);
        assert_eq!(
            mode("valkey_version:9.0.0\r\nserver_mode:standalone"),
            Mode::Standalone
        );
        assert_eq!(mode("redis_version:7.0.0"), Mode::Unknown);
    }

    #[test]
    fn eviction_is_remarked_where_it_can_happen() {
        let remark = |limit: &str, policy: &str| {
            let info = format!("redis_version:7.0.0\r\nmaxmemory:{limit}\r\nmaxmemory_policy:{policy}\r\n");
            ServerInfo::parse(&info).unwrap().remark()
        };
        for policy in ["allkeys-lru", "volatile-ttl", "volatile-lru", "allkeys-random"] {
            let remark = remark("1000000", policy).expect(policy);
            assert!(
                remark.contains(policy) && remark.contains("CONFIG SET maxmemory-policy noeviction"),
                "{remark}"
            );
        }
        assert_eq!(remark("1000000", "noeviction"), None);
        assert_eq!(
            remark("0", "allkeys-lru"),
            None,
            "without a limit nothing is evicted"
        );
    }

    #[test]
    fn every_command_that_a_script_calls_is_asked_for() {
        use std::collections::BTreeSet;
        // Words in capitals between quotes, but for those that are no commands.
        let named = |text: &str| -> BTreeSet<String> {
            text.split('\'')
                .skip(1)
                .step_by(2)
                .filter(|word| word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase()))
                .filter(|word| !["LIMIT", "WITHSCORES", "PX", "NX", "XX", "GT", "LT"].contains(word))
                .map(str::to_owned)
                .collect()
        };
        let code = |source: &str| -> String {
            source
                .lines()
                .map(|line| line.split("--").next().unwrap_or_default())
                .collect::<Vec<_>>()
                .join("\n")
        };
        let asked = named(&code(RIGHTS));
        for script in scripts::ALL {
            for command in named(&code(script.source)) {
                assert!(asked.contains(&command), "{command} is called and not asked for");
            }
        }
        // What is sent besides scripts.
        for command in ["SET", "GET", "DEL"] {
            assert!(asked.contains(command), "{command}");
        }
    }
}
