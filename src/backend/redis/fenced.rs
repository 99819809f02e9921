//! A user's script, run if a hold stands, or all of several. `scripts/fenced.lua` looks at the holds; what it replies is read here.

use redis::{ServerError, Value};
use std::sync::atomic::Ordering;

use super::link::Way;
use super::refusal::{Refusal, by_script, classify, code_of, denied_command, of_a_command, printable};
use super::{Answered, RedisBackend, hash_tag, scripts, slots};
use crate::backend::Failure;
use crate::error::ErrorKind;
use crate::protocol::Ending;
use crate::script::{Ran, Run, ScriptValue};

impl RedisBackend {
    /// Sends it once; again only when the server did not know the script, or says that another serves it: then it did not run.
    pub(super) async fn run_fenced(&self, run: &Run) -> Result<Ran, Failure> {
        let mut slots = run
            .holds
            .iter()
            .map(|held| self.route.slot(|| slots::slot_of(&held.name)));
        let slot = slots.next().unwrap_or_default();
        if slots.any(|other| other != slot) {
            return Err(Failure::No(
                ErrorKind::Invalid(
                    "one script can't see to names in several slots of a cluster: begin all of them with the same tag in braces, as in \
                     {order:17}items"
                        .into(),
                )
                .into(),
            ));
        }
        let way = self.way(slot).await?;
        let id = self.calls.fetch_add(1, Ordering::Relaxed).to_string();
        let command = |verb: &str, script: &str| {
            let mut command = redis::cmd(verb);
            command.arg(script).arg(3 * run.holds.len() + run.keys.len());
            for held in &run.holds {
                let [hash, readers, _, _, marks] = scripts::keys(&held.name);
                command.arg(&[hash, readers, marks]);
            }
            command.arg(&run.keys).arg(&id).arg(run.holds.len());
            for held in &run.holds {
                command
                    .arg(held.member.request.wire())
                    .arg(held.member.owner.wire())
                    .arg(held.fence);
            }
            command.arg(&run.args);
            command
        };
        run.sends();
        let answered = self
            .send(slot, way, Some(&run.source().text), |live, form| {
                match form.full || live.by_source {
                    true => command("EVAL", &run.source().text),
                    false => command("EVALSHA", &run.source().sha1),
                }
            })
            .await?;
        match answered {
            Err((way, error)) => Err(self.turned_down(&way, run, &error).await),
            Ok(Answered { way, value, .. }) => match read(&id, value) {
                Some(Ok(ran)) => Ok(ran),
                Some(Err(error)) => Err(failed(&way.live.peer.place, &error)),
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

    /// The server answered with an error: its own, or one that the user's script ran into.
    async fn turned_down(&self, way: &Way, run: &Run, error: &ServerError) -> Failure {
        let place = &way.live.peer.place;
        let details = error.details().unwrap_or_default();
        if by_script(error) {
            return match classify(place, "a key of the script", error) {
                // Said of the first thing that is read, which is the hold.
                Refusal::Later(_)
                    if details.contains("stale replica") || details.contains("Link with MASTER is down") =>
                {
                    run.did_not_run();
                    self.refused(way, "the script", error).await
                }
                // Said of the first thing that is written: nothing was. What else it may have done, only its author knows.
                Refusal::Later(error) if details.contains("NOREPLICAS") => Failure::No(error),
                Refusal::Elsewhere(error) => {
                    way.linker.fault(&way.live, &error);
                    Failure::No(error)
                }
                _ => failed(place, error),
            };
        }
        run.did_not_run();
        match error.code() {
            "ERR" => failed(place, error),
            "CROSSSLOT" => {
                let tag = run
                    .holds
                    .first()
                    .map(|held| hash_tag(&held.name))
                    .unwrap_or_default();
                Failure::No(
                    ErrorKind::Server(format!(
                        "a key of the script is in another slot of the cluster than the lock: have it begin with {tag} ({place} said: {})",
                        printable(details)
                    ))
                    .into(),
                )
            }
            "NOPERM" if details.contains(" key") => {
                let keys: Vec<String> = run
                    .keys
                    .iter()
                    .map(|key| format!("~{}", String::from_utf8_lossy(key)))
                    .collect();
                Failure::No(
                    ErrorKind::Server(format!(
                        "{place} does not let this user touch a key that the script was given (NOPERM): ACL SETUSER <user> {}",
                        printable(&keys.join(" "))
                    ))
                    .into(),
                )
            }
            _ => self.refused(way, "the script", error).await,
        }
    }
}

/// It ran into something, or says so. What has nothing to do with it is told as what it is.
fn failed(place: &str, error: &ServerError) -> Failure {
    let details = error.details().unwrap_or_default();
    let why = match code_of(error) {
        "OOM" | "MISCONF" => classify(place, "a key of the script", error)
            .into_error()
            .to_string(),
        // Not in the server's words: they name the user.
        "NOPERM" => format!(
            "{place} does not let this user {} (NOPERM): ACL SETUSER <user> {}",
            if of_a_command(details) {
                "run a command that it calls"
            } else {
                "touch a key or channel that it uses"
            },
            denied(details)
        ),
        _ => printable(&format!("{} {details}", error.code())),
    };
    Failure::No(ErrorKind::Server(format!("a script of yours failed: {why}")).into())
}

/// The rule that is missing, as far as a server says.
fn denied(details: &str) -> String {
    if of_a_command(details) {
        match denied_command(details) {
            Some(command) => format!("+{command}"),
            None => "+<command>".into(),
        }
    } else if details.contains(" channel") {
        "&<channel>".into()
    } else {
        "~<key>".into()
    }
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
        "not_held" => {
            let Value::Int(which) = fields.next()? else {
                return None;
            };
            let Value::BulkString(ending) = fields.next()? else {
                return None;
            };
            let ending = Ending::from_wire(std::str::from_utf8(&ending).ok()?)?;
            Some(Ok(Ran::NotHeld(usize::try_from(which - 1).ok()?, ending)))
        }
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
