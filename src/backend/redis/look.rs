//! What operators ask of a server: `SCAN` for the names, client-side tracking for what changes, and what it says of itself.
//!
//! Nothing here touches a lock: it reads, and never by `KEYS` or `MONITOR`, which would hold up everybody else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, Pipeline, Value};

use crate::backend::redis::link::Way;
use crate::backend::redis::refusal::printable;
use crate::backend::redis::slots::SLOTS;
use crate::backend::redis::{RedisBackend, Route, cluster, scripts};
use crate::backend::{Failure, Later, Look};
use crate::error::ErrorKind;
use crate::looking::{ChangeSet, Cursor, Page, Pattern, Stand};
use crate::protocol::ClientId;

/// What one page asks a server to go through; a page has as many names at most, about.
const PAGE: u64 = 1000;

/// Asks who listens.
const LISTENS: [&str; 2] = ["PUBSUB", "NUMSUB"];

/// What `examine` asks for by `CONFIG GET`, each alone: servers before 7.0 take one at a time.
const SETTINGS: [&str; 6] = [
    "maxmemory-policy",
    "appendonly",
    "appendfsync",
    "save",
    "timeout",
    "min-replicas-to-write",
];

/// What a server says of itself, as text. For `relatch doctor`.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Examination {
    /// `INFO`, by field; none if the user may not ask.
    pub info: BTreeMap<String, String>,
    /// `CONFIG GET`, as far as the user may ask.
    pub settings: BTreeMap<String, String>,
    /// What it refused, and how.
    pub refused: Vec<(String, String)>,
    /// The server's time in microseconds since 1970, and how long it took to hear it.
    pub time_us: Option<(u64, Duration)>,
    /// Round trips, one after the other.
    pub round_trips: Vec<Duration>,
    /// The address without credentials.
    pub place: String,
}

impl RedisBackend {
    /// As [`command`](Self::command), where a refusal is a finding.
    async fn asked(&self, into: &mut Examination, words: &[&str]) -> Result<Option<Value>, Failure> {
        let mut command = Cmd::new();
        command.arg(words);
        match self.told(words[0], command).await {
            Ok(value) => Ok(Some(value)),
            Err(Failure::No(error)) => {
                into.refused.push((words.join(" "), error.to_string()));
                Ok(None)
            }
            Err(unknown) => Err(unknown),
        }
    }

    /// A command on no key, to a server.
    async fn told(&self, what: &str, command: Cmd) -> Result<Value, Failure> {
        // In a cluster one that is there answers as well as another.
        let linked = match &self.route {
            Route::Cluster(cluster) => cluster.linked_to(0..SLOTS),
            Route::One(_) => None,
        };
        let way = match linked {
            Some(way) => way,
            None => self.way(FIRST).await?,
        };
        let answered = self
            .deliver(FIRST, way, || what.to_owned(), None, |_, _| command.clone())
            .await?;
        Ok(answered.value)
    }

    /// One page of the names that have a key of this type and with this suffix.
    async fn scan(&self, like: String, kind: &str, suffix: &str, from: &Cursor) -> Result<Page, Failure> {
        let mut next = from.clone();
        if next.listed.is_empty() {
            next.listed = match &self.route {
                Route::One(_) => vec![false],
                Route::Cluster(_) => vec![false; usize::from(SLOTS)],
            };
        }
        let way = self.to_be_listed(&mut next).await?;
        let mut stand = next.stand.take().unwrap_or_else(|| Stand {
            link: way.live.number,
            at: 0,
            covers: self.served_by(&way),
        });
        let mut scan = ::redis::cmd("SCAN");
        scan.arg(stand.at)
            .arg("MATCH")
            .arg(like)
            .arg("COUNT")
            .arg(PAGE)
            .arg("TYPE")
            .arg(kind);
        let what = || "SCAN".to_owned();
        let answered = self
            .deliver(FIRST, way.clone(), what, None, |_, _| scan.clone())
            .await?;
        let page = match answered.value {
            Value::Array(parts) => <[Value; 2]>::try_from(parts).ok(),
            _ => None,
        };
        let Some([Value::BulkString(at), Value::Array(keys)]) = page else {
            return Err(Failure::No(
                ErrorKind::Server("the server answered SCAN with something else than names".into()).into(),
            ));
        };
        let at = std::str::from_utf8(&at).ok().and_then(|at| at.parse().ok());
        let names = keys
            .iter()
            .filter_map(|key| match key {
                Value::BulkString(key) => scripts::name_of(key).filter(|(_, of)| *of == suffix),
                _ => None,
            })
            .map(|(name, _)| name)
            .collect();
        let through = match at {
            Some(0) | None => true,
            Some(at) => {
                stand.at = at;
                false
            }
        };
        if through && let Route::Cluster(cluster) = &self.route {
            // It knows best what it has lost meanwhile, and what it has given away in part.
            let moving = cluster.hear_of_moves(&way).await.map_err(Failure::Unknown)?;
            next.besides.remove(&cluster::place_of(&way));
            for (slot, to) in moving {
                // Keys that had gone there before it was gone through are there for good: once is enough.
                if next.moving.insert(slot) {
                    next.besides.insert(to);
                }
            }
        }
        let serves = self.served_by(&way);
        for (covers, serves) in stand.covers.iter_mut().zip(serves) {
            *covers &= serves;
        }
        if through {
            for (listed, covers) in next.listed.iter_mut().zip(stand.covers) {
                *listed |= covers;
            }
        } else {
            next.stand = Some(stand);
        }
        let over = through && next.besides.is_empty() && next.listed.iter().all(|listed| *listed);
        Ok((names, (!over).then_some(next)))
    }

    /// The way to the server where a listing goes on: to the one at which it stands, as long as its cursor is good; to another; and only if there is no
    /// other to one that has no link, for which this waits.
    async fn to_be_listed(&self, from: &mut Cursor) -> Result<Way, Failure> {
        let Route::Cluster(cluster) = &self.route else {
            let way = self.way(FIRST).await?;
            from.stand = from.stand.take().filter(|stand| stand.link == way.live.number);
            return Ok(way);
        };
        if let Some(stand) = from.stand.take()
            && let Some(way) = cluster.link(stand.link)
        {
            from.stand = Some(stand);
            return Ok(way);
        }
        let left = || (0..SLOTS).filter(|slot| !from.listed[usize::from(*slot)]);
        if let Some(way) = cluster.linked_to(left()) {
            return Ok(way);
        }
        if let Some(place) = from.besides.first() {
            return cluster.way_by(place).await.ok_or_else(|| {
                let (host, port) = place;
                let what = format!("{host}:{port}, to which slots are being moved, can't be reached");
                Failure::Unknown(ErrorKind::Unreachable(what).into())
            });
        }
        self.way(left().next().unwrap_or(FIRST)).await
    }

    /// Which slots a server has; a single server is one.
    fn served_by(&self, way: &Way) -> Vec<bool> {
        match &self.route {
            Route::One(_) => vec![true],
            Route::Cluster(cluster) => cluster.served_by(way),
        }
    }

    /// Several at once, each on its own: an error of one is in its place.
    async fn in_a_row(&self, way: &Way, commands: &Pipeline, count: usize) -> Result<Vec<Value>, Failure> {
        let sent = way
            .live
            .connection
            .clone()
            .send_packed_commands(commands, 0, count)
            .await;
        sent.map_err(|error| self.lost(way, &error))
    }
}

/// A slot of the first server; where there is only one, any.
const FIRST: u16 = 0;

impl Look for RedisBackend {
    #[cfg(feature = "cli")]
    fn bare<'a>(
        &'a self,
        name: &'a crate::protocol::Name,
        lease_ms: u64,
    ) -> Later<'a, Result<crate::Bare, Failure>> {
        Box::pin(RedisBackend::bare(self, name, lease_ms))
    }

    fn names<'a>(&'a self, pattern: &'a Pattern, from: &'a Cursor) -> Later<'a, Result<Page, Failure>> {
        self.within(self.scan(scripts::keys_like(pattern), "hash", "", from))
    }

    fn lines<'a>(&'a self, from: &'a Cursor) -> Later<'a, Result<Page, Failure>> {
        let like = format!("{}*}}{}*", scripts::LOCKS, scripts::LINE);
        self.within(self.scan(like, "zset", scripts::LINE, from))
    }

    fn changes<'a>(&'a self, set: &'a Arc<ChangeSet>) -> Later<'a, Result<bool, Failure>> {
        self.within(async move {
            let mut commands = Pipeline::with_capacity(2);
            // Asked for twice it would be refused.
            commands.cmd("CLIENT").arg("TRACKING").arg("OFF");
            commands
                .cmd("CLIENT")
                .arg(&["TRACKING", "ON", "BCAST", "PREFIX", scripts::LOCKS]);
            let mut servers = match &self.route {
                Route::One(_) => Vec::new(),
                // One without a link is asked when it has one.
                Route::Cluster(cluster) => cluster.linked(),
            };
            if servers.is_empty() {
                servers.push(self.way(FIRST).await?);
            }
            let mut missed = false;
            for way in servers {
                missed |= way.linker.observe(set);
                let mut tracks = way.live.tracks.lock().await;
                if *tracks {
                    continue;
                }
                missed = true;
                let values = self.in_a_row(&way, &commands, 2).await?;
                // Whoever else observes may have missed something in between.
                way.linker.anything_changed();
                for value in &values {
                    if let Value::ServerError(error) = value {
                        return Err(self.refused(&way, "CLIENT TRACKING", error).await);
                    }
                }
                *tracks = true;
            }
            Ok(missed)
        })
    }

    fn listening<'a>(&'a self, clients: &'a [ClientId]) -> Later<'a, Result<Vec<Option<bool>>, Failure>> {
        self.within(async move {
            // In a cluster they listen where they wait.
            if self.is_cluster() || clients.is_empty() {
                return Ok(vec![None; clients.len()]);
            }
            if !self.way(FIRST).await?.live.trust {
                return Ok(vec![None; clients.len()]);
            }
            let mut command = Cmd::new();
            command.arg(&LISTENS);
            for client in clients {
                command.arg(scripts::channel(*client));
            }
            // RESP3: still an array of pairs in a row; or a map, from a server to come.
            let counts: Vec<Value> = match self.told("PUBSUB", command).await {
                Ok(Value::Array(values)) => values.into_iter().skip(1).step_by(2).collect(),
                Ok(Value::Map(pairs)) => pairs.into_iter().map(|(_, count)| count).collect(),
                Ok(_) | Err(Failure::No(_)) => Vec::new(),
                Err(unknown) => return Err(unknown),
            };
            let mut listening: Vec<_> = counts
                .iter()
                .map(|count| match count {
                    Value::Int(count) => Some(*count > 0),
                    _ => None,
                })
                .collect();
            listening.resize(clients.len(), None);
            // Some never listen.
            for (listens, client) in listening.iter_mut().zip(clients) {
                *listens = listens.filter(|_| !client.is_quiet());
            }
            Ok(listening)
        })
    }

    fn examine(&self) -> Later<'_, Result<Examination, Failure>> {
        self.within(async move {
            let mut found = Examination {
                place: self.place().to_owned(),
                ..Examination::default()
            };
            for _ in 0..20 {
                let asked = self.clock.now();
                if self.asked(&mut found, &["PING"]).await?.is_none() {
                    break;
                }
                found.round_trips.push(self.clock.now().since(asked));
            }
            let asked = self.clock.now();
            if let Some(Value::Array(parts)) = self.asked(&mut found, &["TIME"]).await? {
                let took = self.clock.now().since(asked);
                let number = |at: usize| match parts.get(at) {
                    Some(Value::BulkString(text)) => std::str::from_utf8(text).ok()?.parse::<u64>().ok(),
                    _ => None,
                };
                found.time_us = number(0)
                    .zip(number(1))
                    .map(|(seconds, micros)| (seconds.saturating_mul(1_000_000) + micros, took));
            }
            let info = match self.asked(&mut found, &["INFO"]).await? {
                Some(Value::BulkString(text)) => String::from_utf8_lossy(&text).into_owned(),
                Some(Value::VerbatimString { text, .. }) => text,
                _ => String::new(),
            };
            let fields = info.lines().filter_map(|line| line.trim_end().split_once(':'));
            found.info = fields
                .map(|(field, value)| (field.to_owned(), printable(value)))
                .collect();
            // Without a channel it answers nothing, or that this user may not ask.
            self.asked(&mut found, &LISTENS).await?;
            for setting in SETTINGS {
                let value = match self.asked(&mut found, &["CONFIG", "GET", setting]).await? {
                    Some(Value::Map(pairs)) => pairs.into_iter().next().map(|(_, value)| value),
                    Some(Value::Array(pair)) => pair.into_iter().nth(1),
                    _ => None,
                };
                if let Some(Value::BulkString(value)) = value {
                    let value = printable(&String::from_utf8_lossy(&value));
                    found.settings.insert(setting.to_owned(), value);
                }
            }
            Ok(found)
        })
    }
}
