//! Where a simulation takes the place of the network and of the server.
//!
//! The client above is the real one, down to the bytes. A simulated server does not read scripts' arguments: it is told beside the bytes
//! what the call with a number means ([`Network::calling`]), asks the machine in `state.rs`, and writes the reply with
//! [`reply`], which is the inverse of [`scripts::decode`]. **When you change a reply, change it here.**

use std::fmt;
use std::io;

use redis::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::backend::Later;
use crate::protocol::{
    Acquired, Answer, Call, ClientId, Downgraded, HeldRow, Operation, Polled, Push, Released, Renewed, Reply,
    RequestId, WaitRow, WithdrawnFrom,
};
use crate::state::Tuning;

use super::scripts;

/// What one simulated client reaches servers by.
pub(crate) trait Network: fmt::Debug + Send + Sync {
    fn connect(&self) -> Later<'_, io::Result<Box<dyn Stream>>>;

    /// The client is about to send this call with this number.
    fn calling(&self, number: u64, call: &Call, tuning: Tuning, trust: bool);
}

/// A connection.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The channel that a client listens to.
pub(crate) fn channel(client: ClientId) -> String {
    scripts::channel(client)
}

/// What a script replies, as bytes.
pub(crate) fn reply(call: &Call, number: u64, answer: &Answer) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&reply_value(call, number, answer), &mut bytes);
    bytes
}

fn reply_value(call: &Call, number: u64, answer: &Answer) -> Value {
    let (word, mut rest) = match &answer.reply {
        Reply::Acquire(Acquired::Granted(grant)) => (
            "granted",
            vec![int(grant.fence), int(grant.deadline_ms), int(grant.depth)],
        ),
        Reply::Acquire(Acquired::Queued { ticket, wake_ms }) => ("queued", vec![int(*ticket), int(*wake_ms)]),
        Reply::Acquire(Acquired::Busy) => ("busy", vec![]),
        Reply::Acquire(Acquired::Refused) => ("refused", vec![]),
        Reply::Acquire(Acquired::Ended(ending)) => ("ended", vec![text(ending.as_str())]),
        Reply::Release(Released::Released) => ("released", vec![]),
        Reply::Release(Released::NotHeld(ending)) => ("not_held", vec![text(ending.as_str())]),
        Reply::Downgrade(Downgraded::Downgraded(grant)) => (
            "downgraded",
            vec![int(grant.fence), int(grant.deadline_ms), int(grant.depth)],
        ),
        Reply::Downgrade(Downgraded::NotHeld(ending)) => ("not_held", vec![text(ending.as_str())]),
        Reply::Renew(rows) => {
            let row = |row: &Renewed| {
                Value::Array(match row {
                    Renewed::Renewed { deadline_ms } => vec![text("renewed"), int(*deadline_ms)],
                    Renewed::NotHeld(ending) => vec![text("not_held"), text(ending.as_str())],
                })
            };
            ("renew", vec![Value::Array(rows.iter().map(row).collect())])
        }
        Reply::Withdraw(withdrawn) => {
            let word = match withdrawn.was {
                WithdrawnFrom::Held => "held",
                WithdrawnFrom::Queued => "queued",
                WithdrawnFrom::Absent => "absent",
            };
            let mut rest = vec![int(withdrawn.ahead)];
            if matches!(&call.operation, Operation::Withdraw(op) if op.blame) {
                let blame = &withdrawn.blame;
                rest.extend([int(blame.fence), int(blame.holders), int(blame.waiters)]);
                rest.push(Value::Array(blame.holding.iter().map(held_row).collect()));
            }
            (word, rest)
        }
        Reply::Poll(rows) => {
            let row = |row: &Polled| {
                Value::Array(match row {
                    Polled::Granted(grant) => vec![
                        text("granted"),
                        int(grant.fence),
                        int(grant.deadline_ms),
                        int(grant.depth),
                    ],
                    Polled::Queued { wake_ms } => vec![text("queued"), int(*wake_ms)],
                    Polled::NotHeld(ending) => vec![text("not_held"), text(ending.as_str())],
                })
            };
            ("poll", vec![Value::Array(rows.iter().map(row).collect())])
        }
        Reply::Revoke(revoking) => ("revoke", vec![int(revoking.requests), int(revoking.deadline_ms)]),
        Reply::Inspect(snapshot) => (
            "inspect",
            vec![
                int(snapshot.fence),
                int(snapshot.holders),
                int(snapshot.waiters),
                Value::Array(snapshot.holding.iter().map(held_row).collect()),
                Value::Array(snapshot.waiting.iter().map(wait_row).collect()),
            ],
        ),
    };
    let now_us = answer.now_us.map(int);
    // What is asked most is answered as text.
    if matches!(&answer.reply, Reply::Acquire(_) | Reply::Release(_)) {
        let mut line = format!("{number} {word}");
        for value in now_us.iter().chain(&rest) {
            line.push(' ');
            match value {
                Value::Int(number) => line.push_str(&number.to_string()),
                Value::BulkString(word) => line.push_str(&String::from_utf8_lossy(word)),
                _ => {}
            }
        }
        return text(line);
    }
    let mut fields = vec![text(number.to_string())];
    fields.extend(now_us);
    fields.push(text(word));
    fields.append(&mut rest);
    Value::Array(fields)
}

fn held_row(row: &HeldRow) -> Value {
    Value::Array(vec![
        text(row.request.wire()),
        text(row.owner.wire()),
        text(row.mode.as_str()),
        int(row.since_ms),
        int(row.deadline_ms),
        int(u64::from(row.revoked)),
        text(&row.label),
    ])
}

fn wait_row(row: &WaitRow) -> Value {
    Value::Array(vec![
        text(row.request.wire()),
        text(row.owner.wire()),
        text(row.mode.as_str()),
        int(row.since_ms),
        text(&row.label),
    ])
}

/// A push, as what is published: the inverse of [`scripts::decode_push`].
pub(crate) fn payload(push: &Push) -> String {
    let words = |requests: &[RequestId]| requests.iter().map(|r| format!(" {r}")).collect::<String>();
    match push {
        Push::Granted { now_us, grants } => {
            let grants: String = grants
                .iter()
                .map(|(request, grant)| {
                    format!(" {request},{},{},{}", grant.fence, grant.deadline_ms, grant.depth)
                })
                .collect();
            format!("granted {now_us}{grants}")
        }
        Push::Revoked { requests } => format!("revoked 0{}", words(requests)),
    }
}

fn int(number: u64) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn text(text: impl AsRef<str>) -> Value {
    Value::BulkString(text.as_ref().as_bytes().to_vec())
}

fn write(value: &Value, bytes: &mut Vec<u8>) {
    match value {
        Value::Array(values) => {
            bytes.extend(format!("*{}\r\n", values.len()).bytes());
            values.iter().for_each(|value| write(value, bytes));
        }
        Value::Int(number) => bytes.extend(format!(":{number}\r\n").bytes()),
        Value::BulkString(text) => {
            bytes.extend(format!("${}\r\n", text.len()).bytes());
            bytes.extend(text);
            bytes.extend(b"\r\n");
        }
        // Nothing else is in a reply.
        _ => bytes.extend(b"_\r\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        Downgrade, Ending, Grant, Member, Mode, Name, OwnerId, Release, Renewal, Revoke, Revoking, Snapshot,
        Withdraw, Withdrawn,
    };

    const REQUEST: RequestId = RequestId {
        client: ClientId(7),
        number: 3,
    };

    fn replies() -> Vec<(Operation, Reply)> {
        let owner = OwnerId::random();
        let grant = Grant {
            fence: 1_735_689_600_000_123,
            deadline_ms: 1_735_689_600_456,
            depth: 2,
        };
        let acquire = Operation::Acquire(crate::protocol::Acquire {
            request: REQUEST,
            owner,
            mode: Mode::Write,
            wait: true,
            first: false,
            lease_ms: 1000,
            ticket: 0,
            upgrade_of: None,
            label: String::new(),
        });
        let release = Operation::Release(Release {
            request: REQUEST,
            owner,
            fence: 1,
            again: false,
            mark: false,
        });
        let downgrade = Operation::Downgrade(Downgrade {
            request: REQUEST,
            owner,
            fence: 1,
            to: Mode::Read,
        });
        let renewal = Renewal {
            name: Name::new("job").expect("a name"),
            request: REQUEST,
            owner,
            fence: 1,
            lease_ms: 1000,
            fixed: false,
        };
        let member = Member {
            request: REQUEST,
            owner,
        };
        let withdraw = |blame| {
            Operation::Withdraw(Withdraw {
                request: REQUEST,
                owner,
                blame,
                upgrade_of: None,
            })
        };
        let revoke = Operation::Revoke(Revoke {
            owner: None,
            granted_by_ms: 5,
        });
        let seen = Snapshot {
            fence: 9,
            holders: 1,
            waiters: 1,
            holding: vec![HeldRow {
                request: REQUEST,
                owner,
                mode: Mode::Read,
                since_ms: 1,
                deadline_ms: 2,
                revoked: true,
                label: "nightly import".into(),
            }],
            waiting: vec![],
        };
        let whole = Snapshot {
            waiting: vec![WaitRow {
                request: REQUEST,
                owner,
                mode: Mode::Upgradable,
                since_ms: 1,
                label: String::new(),
            }],
            ..seen.clone()
        };
        let withdrawn = |was, blame| Reply::Withdraw(Withdrawn { was, blame, ahead: 4 });
        vec![
            (acquire.clone(), Reply::Acquire(Acquired::Granted(grant))),
            (
                acquire.clone(),
                Reply::Acquire(Acquired::Queued {
                    ticket: 5,
                    wake_ms: 6,
                }),
            ),
            (acquire.clone(), Reply::Acquire(Acquired::Busy)),
            (acquire.clone(), Reply::Acquire(Acquired::Refused)),
            (acquire, Reply::Acquire(Acquired::Ended(Ending::Withdrawn))),
            (release.clone(), Reply::Release(Released::Released)),
            (release, Reply::Release(Released::NotHeld(Ending::Lapsed))),
            (downgrade.clone(), Reply::Downgrade(Downgraded::Downgraded(grant))),
            (downgrade, Reply::Downgrade(Downgraded::NotHeld(Ending::Revoked))),
            (
                Operation::Renew(vec![renewal.clone(); 2]),
                Reply::Renew(vec![
                    Renewed::Renewed { deadline_ms: 8 },
                    Renewed::NotHeld(Ending::Forgotten),
                ]),
            ),
            (
                withdraw(false),
                withdrawn(WithdrawnFrom::Held, Snapshot::default()),
            ),
            (withdraw(true), withdrawn(WithdrawnFrom::Queued, seen)),
            (
                withdraw(true),
                withdrawn(WithdrawnFrom::Absent, Snapshot::default()),
            ),
            (
                Operation::Poll(vec![member; 3]),
                Reply::Poll(vec![
                    Polled::Granted(grant),
                    Polled::Queued { wake_ms: 0 },
                    Polled::NotHeld(Ending::Unknown),
                ]),
            ),
            (
                revoke,
                Reply::Revoke(Revoking {
                    requests: 1,
                    deadline_ms: 3,
                }),
            ),
            (Operation::Inspect(10), Reply::Inspect(whole)),
        ]
    }

    #[test]
    fn a_reply_reads_back_as_what_was_answered() {
        for (operation, reply) in replies() {
            let call = Call {
                name: Name::new("catalog").unwrap(),
                operation,
            };
            // A release alone does not tell the time.
            let now_us = (!matches!(reply, Reply::Release(_))).then_some(1_735_689_600_000_999);
            let answer = Answer { now_us, reply };
            let bytes = super::reply(&call, 42, &answer);
            let value = redis::parse_redis_value(&bytes).unwrap();
            assert_eq!(scripts::decode(&call, 42, value), Ok(answer));
        }
    }

    #[test]
    fn a_push_reads_back_as_what_was_pushed() {
        let grant = Grant {
            fence: 1,
            deadline_ms: 2,
            depth: 3,
        };
        for push in [
            Push::Granted {
                now_us: 9,
                grants: vec![(REQUEST, grant), (REQUEST, grant)],
            },
            Push::Revoked {
                requests: vec![REQUEST, REQUEST],
            },
        ] {
            assert_eq!(scripts::decode_push(payload(&push).as_bytes()), Ok(push));
        }
    }
}
