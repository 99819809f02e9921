//! Waiting until replicas have what a hold is made of.
//!
//! `WAIT` blocks its connection and counts the replicas that have what *that connection* last wrote. So it has a connection of its own,
//! made when it is first needed, and on it a write goes before it: replication keeps the order, so whoever has that write has
//! everything before it. Between the two we ask for the hold itself: what a server that has just taken over does not know, its
//! replicas can acknowledge for ever.
//!
//! One round at a time, for all who ask meanwhile: they wait for one round that is under way, at most, and for their own.

use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{ServerErrorKind, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::backend::Failure;
use crate::backend::redis::dial::Peer;
use crate::backend::redis::refusal::{Refusal, classify, printable};
use crate::backend::redis::scripts::{self, Encoded};
use crate::protocol::{Call, Polled, Reply};

/// A question: do this many replicas know of this hold?
pub(super) struct Ask {
    /// A poll for the one request.
    pub(super) call: Call,
    pub(super) call_id: u64,
    pub(super) encoded: Encoded,
    /// The server does not take scripts by their hash.
    pub(super) by_source: bool,
    pub(super) replicas: u32,
    pub(super) within: Duration,
    pub(super) tell: oneshot::Sender<Told>,
}

/// What the server knows of the hold, and how many replicas as well.
pub(super) type Told = Result<(Polled, u64), Failure>;

/// Answers questions for as long as a link is up. Dropped, it leaves them unanswered.
pub(super) async fn confirm(peer: &Peer, mut asks: mpsc::UnboundedReceiver<Ask>) -> std::convert::Infallible {
    // The second is what keeps the first going.
    let mut linked: Option<(MultiplexedConnection, JoinSet<()>)> = None;
    loop {
        let Some(first) = asks.recv().await else {
            return std::future::pending().await;
        };
        let mut round = vec![first];
        while let Ok(more) = asks.try_recv() {
            round.push(more);
        }
        if linked.is_none() {
            let mut drivers = JoinSet::new();
            // A WAIT takes as long as it was told to: the round has its own limit.
            let config = peer.config().set_response_timeout(None);
            let connecting = peer.connect(&mut drivers, config, || ());
            match timeout(round[0].within + peer.response_timeout, connecting).await {
                Ok(Ok(connection)) => linked = Some((connection, drivers)),
                failed => {
                    let error = match failed {
                        Ok(Err(error)) => error,
                        _ => peer.unreachable("takes no further connection"),
                    };
                    for ask in round {
                        let _ = ask.tell.send(Err(Failure::Unknown(error.clone())));
                    }
                    continue;
                }
            }
        }
        if let Some((connection, _)) = &mut linked
            && !one_round(peer, connection, round).await
        {
            linked = None;
        }
    }
}

/// Tells whether the connection is still good.
async fn one_round(peer: &Peer, connection: &mut MultiplexedConnection, mut round: Vec<Ask>) -> bool {
    round.sort_by_key(|ask| ask.replicas);
    let mut waits: Vec<(u32, Duration)> = Vec::new();
    for ask in &round {
        match waits.last_mut() {
            Some((replicas, within)) if *replicas == ask.replicas => *within = (*within).max(ask.within),
            _ => waits.push((ask.replicas, ask.within)),
        }
    }
    let mut questions = ::redis::Pipeline::with_capacity(round.len() + 1 + waits.len());
    for ask in &round {
        questions.add_command(if ask.by_source {
            ask.encoded.eval()
        } else {
            ask.encoded.evalsha()
        });
    }
    let key = format!("{}:sync", round[0].encoded.keys().next().unwrap_or_default());
    questions.cmd("SET").arg(key).arg("").arg("PX").arg(1);
    for (replicas, within) in &waits {
        // Zero would be for ever.
        questions
            .cmd("WAIT")
            .arg(replicas)
            .arg(crate::protocol::millis(*within).max(1));
    }
    let count = round.len() + 1 + waits.len();
    let limit = waits.iter().map(|(_, within)| *within).sum::<Duration>() + peer.response_timeout;
    let answers = match timeout(limit, connection.send_packed_commands(&questions, 0, count)).await {
        Ok(Ok(answers)) => answers,
        failed => {
            let error = match failed {
                Ok(Err(error)) => peer.broken(&error),
                _ => peer.unreachable(format_args!("did not answer within {limit:?}")),
            };
            for ask in round {
                let _ = ask.tell.send(Err(Failure::Unknown(error.clone())));
            }
            return false;
        }
    };
    let (polled, rest) = answers.split_at(round.len().min(answers.len()));
    let refused = |error: &::redis::ServerError| {
        let code = error.code();
        match classify(&peer.place, "a key for WAIT", error) {
            // Another node of its cluster serves it by now: a new question goes there.
            Refusal::No(error) if !matches!(code, "MOVED" | "ASK") => Failure::No(error),
            other => Failure::Unknown(other.into_error()),
        }
    };
    let written = rest.first();
    let mut good = true;
    let mut again = Vec::new();
    for (mut ask, known) in round.into_iter().zip(polled) {
        let at = waits.iter().position(|(replicas, _)| *replicas == ask.replicas);
        let counted = at.and_then(|at| rest.get(1 + at));
        let told = match (known, written, counted) {
            (Value::ServerError(error), _, _)
                if error.kind() == Some(ServerErrorKind::NoScript) && !ask.by_source =>
            {
                // The server was told to forget.
                ask.by_source = true;
                again.push(ask);
                continue;
            }
            (Value::ServerError(error), _, _)
            | (_, Some(Value::ServerError(error)), _)
            | (_, _, Some(Value::ServerError(error))) => Err(refused(error)),
            (known, Some(_), Some(Value::Int(replicas))) => {
                match scripts::decode(&ask.call, ask.call_id, known.clone()) {
                    Ok(answer) => match answer.reply {
                        Reply::Poll(polled) if polled.len() == 1 => {
                            Ok((polled[0], u64::try_from(*replicas).unwrap_or(0)))
                        }
                        _ => Err(Failure::Unknown(peer.unreachable("answered something else"))),
                    },
                    Err(malformed) => {
                        good = false;
                        Err(Failure::Unknown(
                            peer.unreachable(printable(&malformed.to_string())),
                        ))
                    }
                }
            }
            _ => {
                good = false;
                Err(Failure::Unknown(peer.unreachable("does not know WAIT")))
            }
        };
        let _ = ask.tell.send(told);
    }
    if good && !again.is_empty() {
        // By source no script is unknown: there is no third time.
        return Box::pin(one_round(peer, connection, again)).await;
    }
    good
}
