//! A user's script, run if a hold stands. `scripts/fenced.lua` looks at the hold; what it replies is read here.

use redis::{ServerError, Value};
use std::sync::atomic::Ordering;

use super::refusal::printable;
use super::{Answered, RedisBackend, scripts, slots};
use crate::backend::Failure;
use crate::error::ErrorKind;
use crate::protocol::Ending;
use crate::script::{Ran, Run, ScriptValue};

impl RedisBackend {
    /// Sends it once; a second time only when the server did not know the script, which then did not run.
    pub(super) async fn run_fenced(&self, run: &Run) -> Result<Ran, Failure> {
        let slot = self.route.slot(|| slots::slot_of(&run.name));
        let way = self.way(slot).await?;
        let id = self.calls.fetch_add(1, Ordering::Relaxed).to_string();
        let [hash, readers, _, _, marks] = scripts::keys(&run.name);
        let command = |verb: &str, script: &str| {
            let mut command = redis::cmd(verb);
            command
                .arg(script)
                .arg(3 + run.keys.len())
                .arg(&[&hash, &readers, &marks])
                .arg(&run.keys)
                .arg(&id)
                .arg(run.member.request.wire())
                .arg(run.member.owner.wire())
                .arg(run.fence)
                .arg(&run.args);
            command
        };
        let answered = self
            .send(slot, way, false, |live, form| match form.full || live.by_source {
                true => command("EVAL", &run.source().text),
                false => command("EVALSHA", &run.source().sha1),
            })
            .await?;
        match answered {
            // Of a cluster: nothing was done, and it may be asked again.
            Err((way, error)) if matches!(error.code(), "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN") => {
                Err(self.refused(&way, &format!("the key {hash}"), &error).await)
            }
            // It is the user's script that failed, as far as one can tell: the link is as good as it was.
            Err((_, error)) => Err(failed(&error)),
            Ok(Answered { way, value, .. }) => match read(&id, value) {
                Some(Ok(ran)) => Ok(ran),
                Some(Err(error)) => Err(failed(&error)),
                None => {
                    let error = way
                        .live
                        .peer
                        .unreachable(format_args!("gave no answer to what it was asked"));
                    way.linker.fault(&way.live, &error);
                    Err(Failure::Unknown(error))
                }
            },
        }
    }
}

fn failed(error: &ServerError) -> Failure {
    let details = error.details().map(|why| format!(" {}", printable(why)));
    Failure::No(
        ErrorKind::Server(format!(
            "a script of yours failed: {}{}",
            printable(error.code()),
            details.unwrap_or_default()
        ))
        .into(),
    )
}

/// What a script came to; an error that it returned is one, as without a fence.
fn read(id: &str, value: Value) -> Option<Result<Ran, ServerError>> {
    let Value::Array(fields) = value else { return None };
    let mut fields = fields.into_iter();
    let mut text = || match fields.next()? {
        Value::BulkString(text) => String::from_utf8(text).ok(),
        _ => None,
    };
    let (answered, word) = (text()?, text()?);
    if answered != id {
        return None;
    }
    match word.as_str() {
        "ran" => Some(match fields.next() {
            Some(Value::ServerError(error)) => Err(error),
            value => Ok(Ran::Value(value.map_or(ScriptValue::Nil, plain))),
        }),
        "not_held" => Some(Ok(Ran::NotHeld(Ending::from_wire(&text()?)?))),
        _ => None,
    }
}

/// As people who write scripts know it.
fn plain(value: Value) -> ScriptValue {
    match value {
        Value::Int(number) => ScriptValue::Int(number),
        Value::Boolean(yes) => ScriptValue::Int(i64::from(yes)),
        Value::BulkString(bytes) => ScriptValue::Text(bytes),
        Value::SimpleString(text) => ScriptValue::Text(text.into_bytes()),
        Value::VerbatimString { text, .. } => ScriptValue::Text(text.into_bytes()),
        Value::Okay => ScriptValue::Text(b"OK".to_vec()),
        Value::Double(number) => ScriptValue::Text(number.to_string().into_bytes()),
        Value::Array(values) | Value::Set(values) => {
            ScriptValue::List(values.into_iter().map(plain).collect())
        }
        Value::Map(pairs) => ScriptValue::List(
            pairs
                .into_iter()
                .flat_map(|(key, value)| [plain(key), plain(value)])
                .collect(),
        ),
        _ => ScriptValue::Nil,
    }
}
