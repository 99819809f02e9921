//! Several names in one step: `acquire_all` and its reply.

use redis::Value;

use super::{ACQUIRE_ALL, Decoded, Encoded, Fields, as_many, check_call_id, instead, keys, settings, text};
use crate::protocol::{Acquire, Grant, Name};
use crate::state::Tuning;

pub(crate) fn encode_all(
    parts: &[(Name, Acquire)],
    call_id: u64,
    tuning: &Tuning,
    trust: bool,
    channels: &str,
) -> Encoded {
    let mut args = vec![text(call_id), settings(tuning, trust, channels).into_bytes()];
    for (_, op) in parts {
        args.extend([
            op.request.wire().into_bytes(),
            op.owner.wire().into_bytes(),
            op.mode.as_str().as_bytes()[..1].to_vec(),
            text(op.lease_ms),
            text(u8::from(op.first)),
            text(&op.label),
        ]);
    }
    Encoded {
        script: &ACQUIRE_ALL,
        keys: parts.iter().flat_map(|(name, _)| keys(name)).collect(),
        args,
    }
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
