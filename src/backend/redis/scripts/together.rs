//! Several names in one step: `acquire_all` and its reply.

use redis::Value;

use super::{ACQUIRE_ALL, Decoded, Encoded, Fields, as_many, check_call_id, instead};
use crate::protocol::{Acquire, Grant, Name};
use crate::state::Tuning;

pub(crate) fn encode_all(
    parts: &[(Name, Acquire)],
    call_id: u64,
    tuning: &Tuning,
    trust: bool,
    channels: &str,
) -> Encoded {
    let mut to = Encoded::new(&ACQUIRE_ALL);
    for (name, _) in parts {
        to.keys_of(name);
    }
    to.begin(call_id, tuning, trust, channels);
    for (_, op) in parts {
        to.member(op.request, op.owner);
        to.say(&op.mode.as_str()[..1]);
        to.number(op.lease_ms);
        to.flag(op.first);
        to.say(&op.label);
    }
    to
}

/// The server's time, and a grant for each, or none for all.
pub(crate) fn decode_all(asked: usize, call_id: u64, value: Value) -> Decoded<(u64, Option<Vec<Grant>>)> {
    let mut fields = Fields::of(value, "a script's reply")?;
    check_call_id(call_id, &fields.text("a call's id")?)?;
    let now_us = fields.number("a time")?;
    let word = fields.text("a word")?;
    let rows = fields.rows("a grant", Fields::grant)?;
    let grants = match word.as_str() {
        "granted" => Some(as_many(asked, rows)?),
        "busy" => as_many(0, rows).map(|_: Vec<Grant>| None)?,
        other => return Err(instead("granted or busy", &other)),
    };
    fields.end((now_us, grants))
}
