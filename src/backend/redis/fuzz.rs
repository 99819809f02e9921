//! What a server says, and what a user says of a server, put to inputs that nobody would write. See [`crate::fuzz`].
//!
//! Replies are checked against an encoder of this file's own, [`reply`]: it is what the scripts do, said a second time.
#![allow(missing_docs, unreachable_pub, reason = "a door for fuzz/, not for users")]

use ::redis::{PushKind, Value};
use arbitrary::{Result, Unstructured};

use super::check::ServerInfo;
use super::refusal::{self, classify, printable};
use super::scripts::{Malformed, channel, decode, decode_push, keys};
use super::{RedisOptions, client_key, read_info, write_info};
use crate::fuzz::{assert_short, name, owner_id, request_id, text, tweaked};
use crate::protocol::*;

const NAME_WORDS: [&str; 12] = [
    "{",
    "}",
    "{}",
    "%",
    "%7B",
    "%7D",
    "%25",
    ":readers",
    ":queue",
    "relatch:1:",
    "é",
    "\0",
];

/// Names to keys.
pub fn names(data: &[u8]) {
    let _ = try_names(&mut Unstructured::new(data));
}

fn try_names(u: &mut Unstructured<'_>) -> Result<()> {
    let mut wild = text(u, &NAME_WORDS)?;
    if u.ratio(1, 16)? {
        wild = wild.repeat(20);
    }
    match Name::new(&wild) {
        Ok(name) => {
            assert!((1..=512).contains(&wild.len()));
            assert_eq!(name.as_str(), wild);
        }
        Err(error) => {
            assert!(wild.is_empty() || wild.len() > 512);
            assert!(error.is_invalid() && error.to_string().contains("512"), "{error}");
            assert_short(&error);
        }
    }

    let one = name(u, &NAME_WORDS)?;
    let other = tweaked(u, one.as_str())?;
    let ours = keys(&one);
    for key in &ours {
        // What a cluster hashes: from the first `{` to the next `}`.
        let (tag, after) = key
            .split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'))
            .expect("a hash tag");
        assert!(!tag.is_empty(), "{key}");
        assert!(!tag.contains('{'), "{key}");
        // Nothing is lost on the way, so no two names meet.
        let back = |text: &str| text.replace("%7B", "{").replace("%7D", "}").replace("%25", "%");
        let back = match after.split_once('=') {
            Some((_, rest)) => format!("{{{}}}{}", back(tag), back(rest)),
            None => back(tag),
        };
        assert_eq!(back, one.as_str());
    }
    for (at, key) in ours.iter().enumerate() {
        assert!(!ours[..at].contains(key), "{key}");
        assert!(!key.starts_with("relatch:1:client:"), "{key}");
    }
    if let Ok(other) = Name::new(&other)
        && other != one
    {
        for key in keys(&other) {
            assert!(!ours.contains(&key), "{one:?} and {other:?} share {key:?}");
        }
    }
    Ok(())
}

const SECRET: &str = "s3cret";

/// Addresses.
pub fn addresses(data: &[u8]) {
    let _ = try_addresses(&mut Unstructured::new(data));
}

fn try_addresses(u: &mut Unstructured<'_>) -> Result<()> {
    let words = [
        "redis://",
        "unix://",
        "redis+unix://",
        "valkey://",
        "rediss://",
        "redis+sentinel://",
        "redis-cluster://",
        "sentinel_user=",
        ",",
        "/",
        ":",
        "@",
        "?",
        "#",
        "[::1]",
        "db=",
        "user=",
        "pass=",
        "protocol=",
        "resp3",
        "&",
        "%",
        "%40",
        "%00",
        "%0A",
        "%1B",
        "localhost",
        "6379",
        "127.0.0.1",
        "-1",
    ];
    // Where the password is in the right place, nobody is told it, whatever is around it.
    let (url, secret) = match u.int_in_range(0..=2)? {
        0 => (text(u, &words)?, false),
        1 => {
            let scheme = u.choose(&[
                "redis",
                "valkey",
                "rediss",
                "REDIS",
                "http",
                "r",
                "redis+sentinel",
                "redis-cluster",
            ])?;
            let user = text(u, &["ann", "%", "%40", ":", "s3cret", ""])?;
            let (before, after) = (text(u, &["%", "%40", "x"])?, text(u, &["%", "%40", "x", "@"])?);
            let port = text(u, &["6379", "1", "x"])?;
            let tail = text(u, &words)?;
            let login = format!("{user}:{before}{SECRET}{after}").replace(['/', '?', '#', '\\', '@'], "");
            (format!("{scheme}://{login}@cache:{port}/{tail}"), true)
        }
        _ => {
            let scheme = u.choose(&["unix", "redis+unix", "valkey+unix"])?;
            let path = text(u, &["/", "run", "redis.sock", "%", "%0A", "%2F", ".."])?.replace(['?', '#'], "");
            let query =
                text(u, &["db=", "1", "&", "user=ann", "pass=", "protocol=", "resp2"])?.replace('#', "");
            (format!("{scheme}:///{path}?{query}&pass={SECRET}"), true)
        }
    };
    let options = RedisOptions::new(&*url);
    let shown = match options.target() {
        Err(error) => {
            assert!(error.is_invalid(), "{error:?}");
            assert_short(&error);
            assert!(
                error.to_string().contains("redis://["),
                "says what it takes: {error}"
            );
            error.to_string()
        }
        Ok(target) => {
            assert!(
                !target.place.chars().any(char::is_control),
                "{:?} of {url:?}",
                target.place
            );
            assert!(target.login.db() >= 0);
            let again = RedisOptions::new(&*target.place);
            let again = again
                .target()
                .unwrap_or_else(|error| panic!("{error}: {:?} of {url:?}", target.place));
            assert_eq!(again.place, target.place);
            assert_eq!(format!("{:?}", again.at), format!("{:?}", target.at));
            assert_eq!(again.login.db(), target.login.db());
            assert_eq!((again.login.username(), again.login.password()), (None, None));
            format!("{target:?} {}", target.place)
        }
    };
    if secret {
        assert!(!shown.contains(SECRET), "{shown} of {url:?}");
        assert!(!format!("{options:?}").contains(SECRET), "{options:?}");
    }
    Ok(())
}

// -- replies -----------------------------------------------------------------------------------------------------

/// Replies of the scripts.
pub fn replies(data: &[u8]) {
    let _ = try_replies(&mut Unstructured::new(data));
}

fn try_replies(u: &mut Unstructured<'_>) -> Result<()> {
    let call = call(u)?;
    let id: u64 = u.arbitrary()?;
    let answer = answer(u, &call.operation)?;
    let whole = reply(id, &call, &answer);
    assert_eq!(decode(&call, id, whole.clone()).as_ref(), Ok(&answer));

    // The reply to another call is always known for one, whatever is in it.
    let other = u.arbitrary()?;
    if other != id {
        let Err(Malformed::CallId { asked, answered }) = decode(&call, other, whole.clone()) else {
            panic!("{whole:?} was taken for the reply to {other}")
        };
        assert_eq!((asked, answered), (other, id.to_string()));
    }

    let mut broken = if u.ratio(1, 8)? { value(u, 3)? } else { whole };
    for _ in 0..u.int_in_range(1..=2)? {
        mutate(u, &mut broken)?;
    }
    match decode(&call, id, broken.clone()) {
        Err(Malformed::Content(said)) => assert_short(&said),
        Err(Malformed::CallId { .. }) => {}
        Ok(read) => {
            let written = reply(id, &call, &read);
            assert_eq!(decode(&call, id, written.clone()).as_ref(), Ok(&read));
            // Labels are for people and need not be UTF-8; everything else is as the scripts write it, or refused.
            let cut = String::from_utf8_lossy(b"\xff");
            if !format!("{read:?}").contains(&*cut) {
                assert_eq!(written, broken);
            }
        }
    }
    Ok(())
}

fn count(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(u.arbitrary::<u64>()? >> 1)
}

fn mode(u: &mut Unstructured<'_>) -> Result<Mode> {
    Ok(*u.choose(&[Mode::Read, Mode::Upgradable, Mode::Write])?)
}

fn list<T>(u: &mut Unstructured<'_>, make: impl Fn(&mut Unstructured<'_>) -> Result<T>) -> Result<Vec<T>> {
    (0..u.int_in_range(0..=4)?).map(|_| make(u)).collect()
}

fn call(u: &mut Unstructured<'_>) -> Result<Call> {
    let (request, owner) = (request_id(u)?, owner_id(u)?);
    let name = Name::new("it").expect("a name");
    let operation = match u.int_in_range(0..=7)? {
        0 => Operation::Acquire(Acquire {
            request,
            owner,
            mode: mode(u)?,
            wait: u.arbitrary()?,
            first: u.arbitrary()?,
            lease_ms: u.arbitrary()?,
            ticket: u.arbitrary()?,
            upgrade_of: None,
            label: String::new(),
        }),
        1 => Operation::Release(Release {
            request,
            owner,
            fence: u.arbitrary()?,
            again: false,
            mark: false,
        }),
        2 => Operation::Downgrade(Downgrade {
            request,
            owner,
            fence: u.arbitrary()?,
            to: mode(u)?,
        }),
        3 => Operation::Renew(list(u, |u| {
            Ok(Renewal {
                name: name.clone(),
                request: request_id(u)?,
                owner: owner_id(u)?,
                fence: 0,
                lease_ms: 0,
                fixed: false,
            })
        })?),
        4 => Operation::Withdraw(Withdraw {
            request,
            owner,
            blame: u.arbitrary()?,
            upgrade_of: None,
        }),
        5 => Operation::Poll(list(u, |u| {
            Ok(Member {
                request: request_id(u)?,
                owner: owner_id(u)?,
            })
        })?),
        6 => Operation::Revoke(Revoke {
            owner: None,
            granted_by_ms: 0,
        }),
        _ => Operation::Inspect(4),
    };
    Ok(Call { name, operation })
}

fn ending(u: &mut Unstructured<'_>) -> Result<Ending> {
    Ok(*u.choose(&[
        Ending::Lapsed,
        Ending::Revoked,
        Ending::Withdrawn,
        Ending::Replaced,
        Ending::Forgotten,
        Ending::Unknown,
    ])?)
}

fn grant(u: &mut Unstructured<'_>) -> Result<Grant> {
    Ok(Grant {
        fence: count(u)?,
        deadline_ms: count(u)?,
        depth: count(u)?,
    })
}

fn held_row(u: &mut Unstructured<'_>) -> Result<HeldRow> {
    Ok(HeldRow {
        request: request_id(u)?,
        owner: owner_id(u)?,
        mode: mode(u)?,
        since_ms: count(u)?,
        deadline_ms: count(u)?,
        revoked: u.arbitrary()?,
        label: text(u, &["import", "\n", " "])?,
    })
}

fn wait_row(u: &mut Unstructured<'_>) -> Result<WaitRow> {
    Ok(WaitRow {
        request: request_id(u)?,
        owner: owner_id(u)?,
        mode: mode(u)?,
        since_ms: count(u)?,
        label: text(u, &["import", "\n", " "])?,
    })
}

/// One that this operation may have.
fn answer(u: &mut Unstructured<'_>, operation: &Operation) -> Result<Answer> {
    let reply = match operation {
        Operation::Acquire(_) => Reply::Acquire(match u.int_in_range(0..=4)? {
            0 => Acquired::Granted(grant(u)?),
            1 => Acquired::Queued {
                ticket: count(u)?,
                wake_ms: count(u)?,
            },
            2 => Acquired::Busy,
            3 => Acquired::Refused,
            _ => Acquired::Ended(ending(u)?),
        }),
        Operation::Release(_) if u.arbitrary()? => Reply::Release(Released::Released),
        Operation::Release(_) => Reply::Release(Released::NotHeld(ending(u)?)),
        Operation::Downgrade(_) if u.arbitrary()? => Reply::Downgrade(Downgraded::Downgraded(grant(u)?)),
        Operation::Downgrade(_) => Reply::Downgrade(Downgraded::NotHeld(ending(u)?)),
        Operation::Renew(asked) => {
            let row = |u: &mut Unstructured<'_>| {
                Ok(if u.arbitrary()? {
                    Renewed::Renewed {
                        deadline_ms: count(u)?,
                    }
                } else {
                    Renewed::NotHeld(ending(u)?)
                })
            };
            Reply::Renew(asked.iter().map(|_| row(u)).collect::<Result<_>>()?)
        }
        Operation::Withdraw(op) => {
            let mut blame = Snapshot::default();
            if op.blame {
                blame.fence = count(u)?;
                blame.holders = count(u)?;
                blame.waiters = count(u)?;
                blame.holding = list(u, held_row)?;
            }
            Reply::Withdraw(Withdrawn {
                was: *u.choose(&[WithdrawnFrom::Held, WithdrawnFrom::Queued, WithdrawnFrom::Absent])?,
                blame,
                ahead: count(u)?,
            })
        }
        Operation::Poll(asked) => {
            let row = |u: &mut Unstructured<'_>| {
                Ok(match u.int_in_range(0..=2)? {
                    0 => Polled::Granted(grant(u)?),
                    1 => Polled::Queued { wake_ms: count(u)? },
                    _ => Polled::NotHeld(ending(u)?),
                })
            };
            Reply::Poll(asked.iter().map(|_| row(u)).collect::<Result<_>>()?)
        }
        Operation::Revoke(_) => Reply::Revoke(Revoking {
            requests: count(u)?,
            deadline_ms: count(u)?,
        }),
        Operation::Inspect(_) => Reply::Inspect(Snapshot {
            fence: count(u)?,
            holders: count(u)?,
            waiters: count(u)?,
            holding: list(u, held_row)?,
            waiting: list(u, wait_row)?,
        }),
    };
    let now_us = count(u)?;
    // A release does not tell the time.
    let now_us = (!matches!(operation, Operation::Release(_))).then_some(now_us);
    Ok(Answer { now_us, reply })
}

fn said(text: impl ToString) -> Value {
    Value::BulkString(text.to_string().into_bytes())
}

/// A field has room for what an `i64` holds, a word for more.
fn counted(number: u64) -> Value {
    i64::try_from(number).map_or_else(|_| said(number), Value::Int)
}

fn granted(grant: &Grant) -> Vec<Value> {
    [grant.fence, grant.deadline_ms, grant.depth].map(counted).into()
}

fn row(word: &str, more: Vec<Value>) -> Value {
    Value::Array([vec![said(word)], more].concat())
}

fn held(rows: &[HeldRow]) -> Value {
    let row = |row: &HeldRow| {
        Value::Array(vec![
            said(row.request),
            said(row.owner.wire()),
            said(row.mode),
            counted(row.since_ms),
            counted(row.deadline_ms),
            counted(row.revoked.into()),
            said(&row.label),
        ])
    };
    Value::Array(rows.iter().map(row).collect())
}

fn waiting(rows: &[WaitRow]) -> Value {
    let row = |row: &WaitRow| {
        Value::Array(vec![
            said(row.request),
            said(row.owner.wire()),
            said(row.mode),
            counted(row.since_ms),
            said(&row.label),
        ])
    };
    Value::Array(rows.iter().map(row).collect())
}

/// An answer, as the scripts write it: what is asked most as words with spaces between, the others as fields.
fn reply(id: u64, call: &Call, answer: &Answer) -> Value {
    let ended = |ending: &Ending| vec![said(ending.as_str())];
    let (word, more) = match &answer.reply {
        Reply::Acquire(Acquired::Granted(grant)) => ("granted", granted(grant)),
        Reply::Acquire(Acquired::Queued { ticket, wake_ms }) => {
            ("queued", vec![counted(*ticket), counted(*wake_ms)])
        }
        Reply::Acquire(Acquired::Busy) => ("busy", vec![]),
        Reply::Acquire(Acquired::Refused) => ("refused", vec![]),
        Reply::Acquire(Acquired::Ended(ending)) => ("ended", ended(ending)),
        Reply::Release(Released::Released) => ("released", vec![]),
        Reply::Downgrade(Downgraded::Downgraded(grant)) => ("downgraded", granted(grant)),
        Reply::Release(Released::NotHeld(ending)) | Reply::Downgrade(Downgraded::NotHeld(ending)) => {
            ("not_held", ended(ending))
        }
        Reply::Renew(rows) => {
            let rows = rows.iter().map(|renewed| match renewed {
                Renewed::Renewed { deadline_ms } => row("renewed", vec![counted(*deadline_ms)]),
                Renewed::NotHeld(ending) => row("not_held", ended(ending)),
            });
            ("renew", vec![Value::Array(rows.collect())])
        }
        Reply::Withdraw(Withdrawn { was, blame, ahead }) => {
            let word = match was {
                WithdrawnFrom::Held => "held",
                WithdrawnFrom::Queued => "queued",
                WithdrawnFrom::Absent => "absent",
            };
            let mut more = vec![counted(*ahead)];
            if matches!(&call.operation, Operation::Withdraw(op) if op.blame) {
                more.extend([blame.fence, blame.holders, blame.waiters].map(counted));
                more.push(held(&blame.holding));
            }
            (word, more)
        }
        Reply::Poll(rows) => {
            let rows = rows.iter().map(|polled| match polled {
                Polled::Granted(grant) => row("granted", granted(grant)),
                Polled::Queued { wake_ms } => row("queued", vec![counted(*wake_ms)]),
                Polled::NotHeld(ending) => row("not_held", ended(ending)),
            });
            ("poll", vec![Value::Array(rows.collect())])
        }
        Reply::Revoke(revoking) => (
            "revoke",
            [revoking.requests, revoking.deadline_ms].map(counted).into(),
        ),
        Reply::Inspect(lock) => {
            let mut more: Vec<Value> = [lock.fence, lock.holders, lock.waiters].map(counted).into();
            more.extend([held(&lock.holding), waiting(&lock.waiting)]);
            ("inspect", more)
        }
    };
    let time: Vec<Value> = answer.now_us.map(counted).into_iter().collect();
    if matches!(call.operation, Operation::Acquire(_) | Operation::Release(_)) {
        let words = [vec![said(id), said(word)], time, more].concat();
        return said(words.iter().map(word_of).collect::<Vec<_>>().join(" "));
    }
    Value::Array([vec![said(id)], time, vec![said(word)], more].concat())
}

fn word_of(field: &Value) -> String {
    match field {
        Value::Int(number) => number.to_string(),
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => unreachable!("no script of ours replies {other:?}"),
    }
}

/// Any reply of any server.
fn value(u: &mut Unstructured<'_>, deep: usize) -> Result<Value> {
    let most = if deep == 0 { 7 } else { 11 };
    Ok(match u.int_in_range(0..=most)? {
        0 => Value::Nil,
        1 => Value::Int(u.arbitrary()?),
        2 => said(text(
            u,
            &[
                "granted", "queued", "not_held", "renewed", "lapsed", "write", "0", "1", ".", ",",
            ],
        )?),
        3 => Value::BulkString(u.arbitrary()?),
        4 => Value::SimpleString(text(u, &["OK", "granted"])?),
        5 => Value::Okay,
        6 => Value::Double(u.arbitrary()?),
        7 => Value::Boolean(u.arbitrary()?),
        8 => Value::Map(vec![(value(u, deep - 1)?, value(u, deep - 1)?)]),
        9 => Value::Push {
            kind: PushKind::Message,
            data: vec![value(u, deep - 1)?],
        },
        _ => Value::Array(list(u, |u| value(u, deep - 1))?),
    })
}

/// Changes one thing, somewhere.
fn mutate(u: &mut Unstructured<'_>, whole: &mut Value) -> Result<()> {
    if let Value::Array(fields) = whole
        && u.ratio(7, 8)?
    {
        let at = u.int_in_range(0..=fields.len())?;
        match u.int_in_range(0..=9)? {
            0 => fields.insert(at, value(u, 2)?),
            1 => fields.truncate(at),
            2 if at < fields.len() => drop(fields.remove(at)),
            3 if at < fields.len() => fields.insert(at, fields[at].clone()),
            4 => fields.rotate_left(at),
            _ => {
                if let Some(field) = fields.get_mut(at) {
                    mutate(u, field)?;
                }
            }
        }
        return Ok(());
    }
    *whole = match whole {
        Value::Int(number) if u.arbitrary()? => Value::Int(number.wrapping_add(u.arbitrary()?)),
        Value::Int(number) if u.arbitrary()? => said(*number),
        Value::BulkString(bytes) if u.ratio(3, 4)? => said(tweaked(u, &String::from_utf8_lossy(bytes))?),
        _ => value(u, 2)?,
    };
    Ok(())
}

/// Bytes from a server, through the crate's parser as well.
pub fn resp(data: &[u8]) {
    let _ = try_resp(&mut Unstructured::new(data));
}

fn try_resp(u: &mut Unstructured<'_>) -> Result<()> {
    let (call, id) = (call(u)?, u64::from(u.arbitrary::<u8>()?));
    let bytes = if u.arbitrary()? {
        let words = [
            "*", "$", ":", "%", ">", "~", "+", "-", "#t", "_", "\r\n", "3", "0", "-1", "granted", "busy",
        ];
        text(u, &words)?.into_bytes()
    } else {
        let mut bytes = Vec::new();
        let answer = answer(u, &call.operation)?;
        write(&reply(id, &call, &answer), &mut bytes);
        for _ in 0..u.int_in_range(0..=2)? {
            let at = u.int_in_range(0..=bytes.len() - 1)?;
            bytes[at] = u.arbitrary()?;
        }
        bytes
    };
    if let Ok(value) = ::redis::parse_redis_value(&bytes) {
        match decode(&call, id, value) {
            Ok(answer) => assert_eq!(decode(&call, id, reply(id, &call, &answer)).as_ref(), Ok(&answer)),
            Err(Malformed::Content(said)) => assert_short(&said),
            Err(Malformed::CallId { asked, answered }) => assert_ne!(asked.to_string(), answered),
        }
    }
    Ok(())
}

/// As it goes over the line.
fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Int(number) => out.extend(format!(":{number}\r\n").bytes()),
        Value::BulkString(bytes) => {
            out.extend(format!("${}\r\n", bytes.len()).bytes());
            out.extend(bytes);
            out.extend(b"\r\n");
        }
        Value::Array(fields) => {
            out.extend(format!("*{}\r\n", fields.len()).bytes());
            fields.iter().for_each(|field| write(field, out));
        }
        other => unreachable!("no script of ours replies {other:?}"),
    }
}

// -- pushes ------------------------------------------------------------------------------------------------------

/// Pushes.
pub fn pushes(data: &[u8]) {
    let _ = try_pushes(&mut Unstructured::new(data));
}

fn try_pushes(u: &mut Unstructured<'_>) -> Result<()> {
    let push = if u.arbitrary()? {
        let mut grants = list(u, |u| Ok((request_id(u)?, grant(u)?)))?;
        grants.push((request_id(u)?, grant(u)?));
        Push::Granted {
            now_us: count(u)?,
            grants,
        }
    } else {
        let mut requests = list(u, request_id)?;
        requests.push(request_id(u)?);
        Push::Revoked { requests }
    };
    let message = pushed(&push, count(u)?);
    assert_eq!(decode_push(message.as_bytes()).as_ref(), Ok(&push));

    let wild = match u.int_in_range(0..=2)? {
        0 => u.arbitrary()?,
        1 => {
            let words = [
                "granted",
                "revoked",
                " ",
                ",",
                ".",
                "0",
                "AAAAAAAAAAA.1",
                "AAAAAAAAAAA.1,1,1,1",
            ];
            text(u, &words)?.into_bytes()
        }
        _ => tweaked(u, &message)?.into_bytes(),
    };
    match decode_push(&wild) {
        Ok(read) => {
            let time = String::from_utf8_lossy(&wild)
                .split(' ')
                .nth(1)
                .and_then(|time| time.parse().ok());
            let written = pushed(&read, time.expect("it was read"));
            assert_eq!(written.as_bytes(), wild);
        }
        Err(Malformed::Content(said)) => assert_short(&said),
        Err(other) => panic!("a push is no reply: {other:?}"),
    }
    Ok(())
}

/// A push, as the scripts write it.
fn pushed(push: &Push, time: u64) -> String {
    match push {
        Push::Granted { now_us, grants } => {
            let words = grants.iter().map(|(request, grant)| {
                format!(" {request},{},{},{}", grant.fence, grant.deadline_ms, grant.depth)
            });
            format!("granted {now_us}{}", words.collect::<String>())
        }
        Push::Revoked { requests } => {
            let words = requests.iter().map(|request| format!(" {request}"));
            format!("revoked {time}{}", words.collect::<String>())
        }
    }
}

// -- what else a server says -------------------------------------------------------------------------------------

/// INFO, errors, and what clients say of themselves.
pub fn server_words(data: &[u8]) {
    let _ = try_server_words(&mut Unstructured::new(data));
}

fn try_server_words(u: &mut Unstructured<'_>) -> Result<()> {
    let words = [
        "redis_version:",
        "valkey_version:",
        "redis_mode:",
        "server_mode:",
        "standalone",
        "sentinel",
        "\r\n",
        "7",
        ".",
        "# Server",
    ];
    if let Some(info) = ServerInfo::parse(&text(u, &words)?) {
        assert_printable(&info.version);
        let _ = info.is_too_old();
    }

    let words = [
        "ERR",
        "WRONGTYPE",
        "NOSCRIPT",
        "NOAUTH",
        "MOVED",
        "Error running script",
        "unning script",
        "-",
        ":",
        " ",
        "@user_script:",
        " script: ",
        "max number of clients",
    ];
    let (code, details) = (text(u, &words)?, text(u, &words)?);
    let error = ::redis::make_extension_error(code, Some(details));
    if let Ok(error) = ::redis::ServerError::try_from(error) {
        assert_printable(&refusal::said(&error));
        let refused = classify("redis://cache:6379", "the key relatch:1:{it}", &error).into_error();
        assert!(refused.is_server() || refused.is_unreachable());
        assert_printable(&refused.to_string());
    }

    let words = ["host", "\n", "\r", "7", " ", "\u{1b}[31m"];
    let info = ClientInfo {
        host: text(u, &words)?,
        pid: u.arbitrary()?,
        program: text(u, &words)?,
        version: text(u, &words)?,
    };
    let read = read_info(write_info(&info).as_bytes()).expect("what it wrote");
    assert_eq!(read.pid, info.pid);
    assert_eq!(read.host, printable(&info.host));
    assert_eq!(read.program, printable(&info.program));
    assert_eq!(read.version, printable(&info.version));
    if let Some(read) = read_info(text(u, &words)?.as_bytes()) {
        assert_printable(&read.to_string());
        assert_printable(&read.version);
    }
    let client = request_id(u)?.client;
    assert_eq!(client_key(client), channel(client));
    Ok(())
}

#[track_caller]
fn assert_printable(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert_short(&text);
}

/// What was found, each in its smallest form.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sockets_address_is_shown_as_it_was_typed() {
        for url in [
            "unix:///run/a%0Ab.sock",
            "unix:///run/a%3Fb",
            "unix:///run/%1B%5B31m",
            "unix:///a b",
        ] {
            let place = RedisOptions::new(url).target().unwrap().place;
            assert_eq!(place, url.replace(' ', "%20"));
        }
    }

    #[test]
    fn what_a_client_says_of_itself_reaches_no_terminal_unread() {
        let info = read_info(b"host\x1b[2J\n7\nprog\x07ram\n1.0\r").unwrap();
        assert_eq!(info.to_string(), "prog ram (pid 7) on host [2J");
    }

    #[test]
    fn a_client_without_a_version_is_known() {
        assert!(read_info(b"host\n7\nprogram\n").is_some());
        assert!(read_info(b"host\n7\nprogram").is_none());
    }
}
