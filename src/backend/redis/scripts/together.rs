//! Several names in one step: `acquire_all` and its reply.

use redis::Value;

use super::{ACQUIRE_ALL, Decoded, Encoded, Fields, as_many, check_call_id, instead};
use crate::protocol::{Acquire, Grant, Name};
use crate::state::{Tuning, WhyNot};

pub(crate) fn encode_all(
    parts: &[(Name, Acquire)],
    call_id: u64,
    tuning: &Tuning,
    trust: bool,
    channels: &str,
) -> Encoded {
    let mut to = Encoded::new(&ACQUIRE_ALL, parts.len());
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

/// The server's time, and a grant for each, or why none was taken.
pub(crate) fn decode_all(
    asked: usize,
    call_id: u64,
    value: Value,
) -> Decoded<(u64, Result<Vec<Grant>, WhyNot>)> {
    let mut fields = Fields::of(value, "a script's reply")?;
    check_call_id(call_id, &fields.text("a call's id")?)?;
    let now_us = fields.number("a time")?;
    let word = fields.text("a word")?;
    let told = match word.as_str() {
        "granted" => Ok(as_many(asked, fields.rows("a grant", Fields::grant)?)?),
        "busy" => {
            as_many(0, fields.rows("a grant", Fields::grant)?)?;
            Err(WhyNot::Busy)
        }
        "refused" => {
            let which = as_many(1, fields.rows("a number", |row| row.number("a number"))?)?[0];
            let at = usize::try_from(which).ok().and_then(|which| which.checked_sub(1));
            match at.filter(|at| *at < asked) {
                Some(at) => Err(WhyNot::Refused(at)),
                None => return Err(instead("the number of one that was asked for", &which)),
            }
        }
        other => return Err(instead("granted, busy or refused", &other)),
    };
    fields.end((now_us, told))
}
