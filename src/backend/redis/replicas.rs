//! Waiting until replicas have what a hold is made of.
//!
//! `WAIT` blocks its connection and counts the replicas that have what *that connection* last wrote. So it has a connection of its own,
//! made when it is first needed, and on it a write goes before it: replication keeps the order, so whoever has that write has
//! everything before it. (In a cluster one for each slot that is asked for: any of these may be another node's by now, which is nothing to
//! those in the others.) Between the two we ask for the hold itself: what a server that has just taken over does not know, its
//! replicas can acknowledge for ever.
//!
//! What this file keeps: **nobody waits for what another asks for.** `WAIT` is called for a slice of time at most, for the fewest replicas that
//! anybody still asks for. Then who has enough is told, who is out of time is told, who has gone is forgotten, and who has come
//! meanwhile writes and joins. By that write the count is one of a later point than those before it ask for: enough for them if it is
//! enough. Where it is not, the server says (`INFO`) how far each replica has come, and each is told by the point of its own write; else those
//! who ask one after the other would put off, each, all before them.

use std::collections::BTreeMap;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{ServerError, ServerErrorKind, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::backend::Failure;
use crate::backend::redis::dial::Peer;
use crate::backend::redis::refusal::{Refusal, classify, printable};
use crate::backend::redis::scripts::{self, Encoded};
use crate::clock::{Clock, Moment};
use crate::error::Error;
use crate::protocol::{Call, Polled, Reply};

/// The longest that `WAIT` is called for: so long, at most, does whoever comes wait for those who wait already.
const SLICE: Duration = Duration::from_millis(25);

/// A question: do this many replicas know of this hold?
pub(super) struct Ask {
    /// A poll for the one request.
    pub(super) call: Call,
    pub(super) call_id: u64,
    /// What its keys are in, if they are in any.
    pub(super) slot: u16,
    pub(super) encoded: Encoded,
    /// The server does not take scripts by their hash.
    pub(super) by_source: bool,
    pub(super) replicas: u32,
    pub(super) within: Duration,
    /// Closed by whoever does not want to know any more.
    pub(super) tell: oneshot::Sender<Told>,
}

/// What the server knows of the hold, and how many replicas as well.
pub(super) type Told = Result<(Polled, u64), Failure>;

/// Somebody whose hold is there, and who waits for replicas.
struct Asked {
    polled: Polled,
    replicas: u64,
    /// How many had it when it was last looked.
    acknowledged: u64,
    until: Moment,
    /// How far replicas must have come, where the server says.
    point: Option<Point>,
    tell: oneshot::Sender<Told>,
}

/// How much a server has written, and as what: one that was a replica meanwhile goes on as another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Point {
    history: String,
    offset: u64,
}

/// What `INFO` says of replication.
#[derive(Debug, PartialEq, Eq)]
struct Progress {
    written: Point,
    /// What each replica has acknowledged.
    acknowledged: Vec<u64>,
}

impl Progress {
    /// `None` where it is not told, or not in words that we know.
    fn parse(info: &Value) -> Option<Self> {
        let info = match info {
            Value::BulkString(info) => std::str::from_utf8(info).ok()?,
            Value::VerbatimString { text, .. } => text,
            _ => return None,
        };
        let fields = || info.lines().filter_map(|line| line.trim().split_once(':'));
        let field = |name: &str| fields().find_map(|(key, value)| (key == name).then_some(value));
        Some(Self {
            written: Point {
                history: field("master_replid")?.to_owned(),
                offset: field("master_repl_offset")?.parse().ok()?,
            },
            acknowledged: fields()
                .filter(|(key, value)| {
                    let number = key.strip_prefix("slave").unwrap_or_default();
                    number.parse::<u32>().is_ok() && value.split(',').any(|part| part == "state=online")
                })
                .filter_map(|(_, value)| {
                    let offset = value.split(',').find_map(|part| part.strip_prefix("offset="));
                    offset?.parse().ok()
                })
                .collect(),
        })
    }

    /// How many replicas have come so far. Nothing is known of another history.
    fn reached(&self, point: &Point) -> Option<u64> {
        (self.written.history == point.history).then(|| {
            let far = self.acknowledged.iter().filter(|offset| **offset >= point.offset);
            far.count() as u64
        })
    }
}

/// Answers questions for as long as a link is up. Dropped, it leaves them unanswered.
pub(super) async fn confirm(
    peer: &Peer,
    clock: &Clock,
    connect_timeout: Duration,
    mut asks: mpsc::UnboundedReceiver<Ask>,
) -> std::convert::Infallible {
    let mut line: Option<Line> = None;
    loop {
        let mut new = line
            .as_mut()
            .map(|line| std::mem::take(&mut line.again))
            .unwrap_or_default();
        if new.is_empty() && line.as_ref().is_none_or(|line| line.waiting.is_empty()) {
            match asks.recv().await {
                Some(first) => new.push(first),
                None => return std::future::pending().await,
            }
        }
        while let Ok(more) = asks.try_recv() {
            new.push(more);
        }
        new.retain(|ask| !ask.tell.is_closed());
        if line.is_none() && !new.is_empty() {
            let mut drivers = JoinSet::new();
            // A WAIT takes as long as it was told to: the round has its own limit.
            let config = peer.config().set_response_timeout(None);
            let connecting = peer.connect(&mut drivers, config, || ());
            match timeout(connect_timeout, connecting).await {
                Ok(Ok(connection)) => {
                    line = Some(Line {
                        connection,
                        _drivers: drivers,
                        waiting: Vec::new(),
                        again: Vec::new(),
                    });
                }
                failed => {
                    let error = match failed {
                        Ok(Err(error)) => error,
                        _ => peer.unreachable("takes no further connection"),
                    };
                    for ask in new {
                        let _ = ask.tell.send(Err(Failure::Unknown(error.clone())));
                    }
                    continue;
                }
            }
        }
        if let Some(open) = &mut line
            && let Err(error) = open.round(peer, clock, new).await
        {
            for asked in line.take().into_iter().flat_map(|line| line.waiting) {
                let _ = asked.tell.send(Err(Failure::Unknown(error.clone())));
            }
        }
    }
}

/// The connection for `WAIT`, and who waits on it.
struct Line {
    connection: MultiplexedConnection,
    /// What keeps the connection going.
    _drivers: JoinSet<()>,
    waiting: Vec<Asked>,
    /// Whose question must go with its script.
    again: Vec<Ask>,
}

impl Line {
    /// One slice. An error: the connection is of no use any more, and who waits is to be told so; the new ones have been.
    async fn round(&mut self, peer: &Peer, clock: &Clock, new: Vec<Ask>) -> Result<(), Error> {
        self.waiting.retain(|asked| !asked.tell.is_closed());
        if self.waiting.is_empty() && new.is_empty() {
            return Ok(());
        }
        let now = clock.now();
        let fewest = (self.waiting.iter().map(|asked| asked.replicas))
            .chain(new.iter().map(|ask| u64::from(ask.replicas)))
            .min();
        let first = (self.waiting.iter().map(|asked| asked.until.since(now)))
            .chain(new.iter().map(|ask| ask.within))
            .min();
        let slice = first.unwrap_or(SLICE).min(SLICE);

        let keys: BTreeMap<u16, String> = new
            .iter()
            .map(|ask| {
                (
                    ask.slot,
                    format!("{}:sync", ask.encoded.keys().next().unwrap_or_default()),
                )
            })
            .collect();
        let mut questions = ::redis::Pipeline::with_capacity(new.len() + keys.len() + 3);
        for ask in &new {
            questions.add_command(if ask.by_source {
                ask.encoded.eval()
            } else {
                ask.encoded.evalsha()
            });
        }
        for key in keys.values() {
            questions.cmd("SET").arg(key).arg("").arg("PX").arg(1);
        }
        questions.cmd("INFO").arg("replication");
        questions
            .cmd("WAIT")
            .arg(fewest.unwrap_or(1))
            // Zero would be for ever.
            .arg(crate::protocol::millis(slice).max(1));
        questions.cmd("INFO").arg("replication");
        let count = new.len() + keys.len() + 3;

        let limit = slice + peer.response_timeout;
        let answers = match timeout(limit, self.connection.send_packed_commands(&questions, 0, count)).await {
            Ok(Ok(answers)) if answers.len() == count => answers,
            failed => {
                let error = match failed {
                    Ok(Err(error)) => peer.broken(&error),
                    Ok(Ok(_)) => peer.unreachable("answered something else"),
                    Err(_) => peer.unreachable(format_args!("did not answer within {limit:?}")),
                };
                for ask in new {
                    let _ = ask.tell.send(Err(Failure::Unknown(error.clone())));
                }
                return Err(error);
            }
        };
        let (polled, rest) = answers.split_at(new.len());
        let mut good = Ok(());
        let (written, rest) = rest.split_at(keys.len());
        let point = Progress::parse(&rest[0]).map(|seen| seen.written);
        let written = keys.into_keys().zip(written).collect();
        if let Err(error) = self.join(peer, now, new, polled, &written, point.as_ref()) {
            good = Err(error);
        }
        let acknowledged = match &rest[1] {
            Value::Int(number) => u64::try_from(*number).unwrap_or(0),
            Value::ServerError(error) => {
                let failure = refused(peer, error);
                let Failure::Unknown(error) = failure else {
                    // No right to, or no such command: there is no use in waiting.
                    for asked in self.waiting.drain(..) {
                        let _ = asked.tell.send(Err(failure.clone()));
                    }
                    return good;
                };
                // It is no primary any more.
                return Err(error);
            }
            _ => return Err(peer.unreachable("does not know WAIT")),
        };
        self.tell(clock.now(), acknowledged, Progress::parse(&rest[2]).as_ref());
        good
    }

    /// Who has asked since the last slice waits from now on, if its hold is there.
    fn join(
        &mut self,
        peer: &Peer,
        now: Moment,
        new: Vec<Ask>,
        polled: &[Value],
        written: &BTreeMap<u16, &Value>,
        point: Option<&Point>,
    ) -> Result<(), Error> {
        let mut good = Ok(());
        for (mut ask, known) in new.into_iter().zip(polled) {
            if let Value::ServerError(error) = known
                && error.kind() == Some(ServerErrorKind::NoScript)
                && !ask.by_source
            {
                // The server was told to forget.
                ask.by_source = true;
                self.again.push(ask);
                continue;
            }
            let told = match (known, written.get(&ask.slot)) {
                (Value::ServerError(error), _) | (_, Some(Value::ServerError(error))) => {
                    Err(refused(peer, error))
                }
                (known, _) => match scripts::decode(&ask.call, ask.call_id, known.clone()) {
                    Ok(answer) => match answer.reply {
                        Reply::Poll(polled) if polled.len() == 1 => Ok(polled[0]),
                        _ => Err(Failure::Unknown(peer.unreachable("answered something else"))),
                    },
                    Err(malformed) => {
                        let error = peer.unreachable(printable(&malformed.to_string()));
                        good = Err(error.clone());
                        Err(Failure::Unknown(error))
                    }
                },
            };
            match told {
                Ok(polled @ Polled::Granted(_)) => self.waiting.push(Asked {
                    polled,
                    replicas: u64::from(ask.replicas),
                    acknowledged: 0,
                    until: now.plus(ask.within),
                    point: point.cloned(),
                    tell: ask.tell,
                }),
                // There is no hold to wait for.
                told => {
                    let _ = ask.tell.send(told.map(|polled| (polled, 0)));
                }
            }
        }
        good
    }

    /// So many have the last that was written here; `progress`: how far each has come.
    fn tell(&mut self, now: Moment, acknowledged: u64, progress: Option<&Progress>) {
        for mut asked in std::mem::take(&mut self.waiting) {
            let own = asked.point.as_ref().zip(progress);
            let own = own.and_then(|(point, progress)| progress.reached(point));
            asked.acknowledged = acknowledged.max(own.unwrap_or(0));
            if asked.acknowledged >= asked.replicas || now >= asked.until {
                let _ = asked.tell.send(Ok((asked.polled, asked.acknowledged)));
            } else {
                self.waiting.push(asked);
            }
        }
    }
}

fn refused(peer: &Peer, error: &ServerError) -> Failure {
    let code = error.code();
    // It has become a replica: `WAIT cannot be used with replica instances`; or another node of its cluster serves the key by now.
    let elsewhere = matches!(code, "MOVED" | "ASK" | "UNBLOCKED")
        || error.details().unwrap_or_default().starts_with("WAIT cannot");
    match classify(&peer.place, "a key for WAIT", error) {
        Refusal::No(no) if !elsewhere => Failure::No(no),
        other => Failure::Unknown(other.into_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(info: &str) -> Option<Progress> {
        Progress::parse(&Value::BulkString(info.as_bytes().to_vec()))
    }

    #[test]
    fn what_info_says_is_read_and_what_it_does_not_say_is_nothing() {
        let info = "# Replication\r\nrole:master\r\nconnected_slaves:3\r\nslave0:ip=::1,port=1,state=online,offset=70,lag=0\r\n\
            slave1:ip=10.0.0.2,port=1,state=wait_bgsave,offset=90,lag=0\r\nslave2:ip=h,port=1,state=online,offset=99,lag=1\r\n\
            slaves_of_all:state=online,offset=100\r\nmaster_replid:abc\r\nmaster_repl_offset:100\r\n";
        let seen = told(info).unwrap();
        assert_eq!(
            seen,
            Progress {
                written: Point {
                    history: "abc".into(),
                    offset: 100
                },
                acknowledged: vec![70, 99],
            }
        );
        let point = |history: &str, offset| Point {
            history: history.into(),
            offset,
        };
        assert_eq!(seen.reached(&point("abc", 71)), Some(1));
        assert_eq!(seen.reached(&point("abc", 70)), Some(2));
        assert_eq!(seen.reached(&point("abc", 100)), Some(0));
        assert_eq!(seen.reached(&point("another", 1)), None);
        for other in [
            "",
            "master_replid:abc\r\n",
            "master_replid:a\r\nmaster_repl_offset:x\r\n",
        ] {
            assert_eq!(told(other), None, "{other:?}");
        }
        assert_eq!(Progress::parse(&Value::Nil), None);
        let none = told("slave0:offset=1\r\nmaster_replid:a\r\nmaster_repl_offset:1").unwrap();
        assert_eq!(none.acknowledged, [0; 0]);
    }
}
