//! Writes to the server that keeps the lock, which apply only while the hold stands, or all of several: look and write in one script.
//!
//! Between the last look at a guard and a write that arrives there is time in which a lease can end. A script has none: the server looks at the
//! hold and writes in one step.

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backend::Failure;
use crate::core::{Core, Handle};
use crate::error::{Error, ErrorKind, LostCause};
use crate::guard::Hold;
use crate::lock::Acquiring;
use crate::protocol::Ending;
use crate::watchdog::Held;

/// What comes before a user's script.
const PRELUDE: &str = include_str!("../scripts/fenced.lua");

/// A Lua script that Redis runs only while a hold stands. Make it once, and run it with [`WriteGuard::run`](crate::WriteGuard::run).
///
/// In it `KEYS` and `ARGV` are what the run gives, as in any script, and `FENCE` is the fence of the hold, as text. Of several holds
/// ([`MultiGuard::run`](crate::MultiGuard::run)) `FENCES` has all, in the order of their names.
///
/// It is loaded (`SCRIPT LOAD`) and run by its hash (`EVALSHA`); with its source (`EVAL`) where a user may not load scripts.
/// Besides that a user needs the rights to the keys that it is given and to the commands that it calls. What Redis says of a line of it
/// (`user_script:3`) is about that line of the body.
///
/// ```no_run
/// # async fn f() -> Result<(), relatch::Error> {
/// use relatch::{FencedScript, Relatch};
///
/// let relatch = Relatch::connect("redis://127.0.0.1:6379").await?;
/// let take = FencedScript::new("return redis.call('DECRBY', KEYS[1], ARGV[1])");
/// let lock = relatch.rwlock("stock")?;
/// let write = lock.write().await?;
/// let left = write.run(&take).key(format!("left:{}", lock.hash_tag())).arg("3").await?;
/// assert!(left.as_int() >= Some(0));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct FencedScript {
    inner: Arc<Source>,
}

pub(crate) struct Source {
    pub(crate) text: String,
    pub(crate) sha1: String,
}

impl fmt::Debug for FencedScript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FencedScript")
            .field("sha1", &self.inner.sha1)
            .finish_non_exhaustive()
    }
}

impl FencedScript {
    /// Of its body: what `EVAL` takes.
    pub fn new(body: &str) -> Self {
        let (before, after) = PRELUDE.split_once("--BODY--").unwrap_or((PRELUDE, ""));
        // On one line: what Redis says of a line is then about that line of the body.
        let before: Vec<_> = before
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with("--"))
            .collect();
        let text = format!("{} {body}{after}", before.join(" ").trim());
        let sha1 = crate::backend::redis::sha1_of(&text);
        Self {
            inner: Arc::new(Source { text, sha1 }),
        }
    }
}

/// What a script returned, as Redis hands it over: numbers whole, `false` and `nil` as nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScriptValue {
    /// `nil`, or `false`.
    Nil,
    /// A number.
    Int(i64),
    /// A string, or a status.
    Text(Vec<u8>),
    /// A table.
    List(Vec<ScriptValue>),
}

impl ScriptValue {
    /// The number, if it is one, or text that says one.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            ScriptValue::Int(number) => Some(*number),
            ScriptValue::Text(_) => self.as_str()?.parse().ok(),
            _ => None,
        }
    }

    /// The text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            ScriptValue::Text(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Is there nothing?
    pub fn is_nil(&self) -> bool {
        matches!(self, ScriptValue::Nil)
    }
}

/// A run of a script, if all of these holds stand.
pub(crate) struct Run {
    pub(crate) script: FencedScript,
    pub(crate) holds: Vec<Arc<Held>>,
    pub(crate) keys: Vec<Vec<u8>>,
    pub(crate) args: Vec<Vec<u8>>,
    /// It was sent, and the server has not said that it did not run it.
    may_run: AtomicBool,
}

impl Run {
    pub(crate) fn source(&self) -> &Source {
        &self.script.inner
    }

    /// It is sent now.
    pub(crate) fn sends(&self) {
        self.may_run.store(true, Ordering::Release);
    }

    /// The server says that it has not run it, and will not.
    pub(crate) fn did_not_run(&self) {
        self.may_run.store(false, Ordering::Release);
    }

    fn may_run(&self) -> bool {
        self.may_run.load(Ordering::Acquire)
    }
}

/// What became of it.
pub(crate) enum Ran {
    Value(ScriptValue),
    /// Which of the holds does not stand, and why.
    NotHeld(usize, Ending),
}

/// A script that is run if the hold stands, or all of them: await it for what it returns.
///
/// It is executed at most once. It is sent again only where the server said that it did not run it, and may soon: it loads its data, is
/// busy, moves the keys. Whether it had run is not known when the answer does not come: a script that may be run again can be sent again.
///
/// # Errors
///
/// - [`is_lost`](Error::is_lost): the hold does not stand; nothing was run.
/// - [`is_unreachable`](Error::is_unreachable): no answer came within [`Config::patience`](crate::Config::patience). The error says either that it was not
///   run, or that this *is not known*: then it may have run, or may yet, while the hold stands.
/// - [`is_server`](Error::is_server): the script failed, with what Redis says; what it had written before stays, as in any script. Or a key of it is not in the
///   slot of the lock: begin it with [`RwLock::hash_tag`](crate::RwLock::hash_tag). Or the user may not do what it takes.
/// - [`is_invalid`](Error::is_invalid): an embedded client, which has no server to run scripts; several names that are not in one slot of a cluster.
///
/// # Cancel safety
///
/// Not cancel safe: dropping the future leaves it open whether it has run.
#[must_use = "a script does nothing until it is awaited"]
pub struct FencedRun {
    client: Arc<Handle>,
    run: Run,
}

impl fmt::Debug for FencedRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.run.holds.iter().map(|held| held.name.as_str()).collect();
        f.debug_struct("FencedRun")
            .field("script", &self.run.script)
            .field("names", &names)
            .finish_non_exhaustive()
    }
}

impl FencedRun {
    pub(crate) fn new<'a>(
        client: Arc<Handle>,
        holds: impl IntoIterator<Item = &'a Hold>,
        script: &FencedScript,
    ) -> Self {
        Self {
            client,
            run: Run {
                script: script.clone(),
                holds: holds.into_iter().map(|hold| hold.held().clone()).collect(),
                keys: Vec::new(),
                args: Vec::new(),
                may_run: AtomicBool::new(false),
            },
        }
    }

    /// The next of `KEYS`.
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.run.keys.push(key.into());
        self
    }

    /// The next of `ARGV`.
    pub fn arg(mut self, arg: impl Into<Vec<u8>>) -> Self {
        self.run.args.push(arg.into());
        self
    }

    /// Blocks this thread until it is done: `.await` for [threads](crate::blocking).
    ///
    /// # Errors
    ///
    /// As awaiting it.
    pub fn wait(self) -> Result<ScriptValue, Error> {
        let client = self.client.clone();
        crate::blocking::wait(&client, self.into_future())?
    }
}

impl IntoFuture for FencedRun {
    type Output = Result<ScriptValue, Error>;
    type IntoFuture = Acquiring<ScriptValue>;

    fn into_future(self) -> Acquiring<ScriptValue> {
        Box::pin(async move {
            let core: &Core = &self.client;
            let run = &self.run;
            let first = run.holds.first().ok_or_else(|| -> Error {
                ErrorKind::Invalid("this guard holds nothing that a script could depend on".into()).into()
            })?;
            let patience = core.clock.now().plus(core.config.patience);
            let mut last = None;
            loop {
                let now = core.clock.now();
                if last.is_some() && now >= patience {
                    return Err(core.unanswered(&first.name, last));
                }
                // What is known to be lost is not even sent.
                for held in &run.holds {
                    if let Some(cause) = held.end(now) {
                        return Err(held.lost_error(cause));
                    }
                }
                let outcome = tokio::select! {
                    biased;
                    outcome = core.backend.run(run) => outcome,
                    () = core.clock.sleep_until(patience) => {
                        let error = core.unanswered(&first.name, last);
                        return Err(if run.may_run() { unknown(&error) } else { error });
                    }
                };
                match outcome {
                    Ok(Ran::Value(value)) => return Ok(value),
                    Ok(Ran::NotHeld(which, ending)) => {
                        let held = run.holds.get(which).unwrap_or(first);
                        return Err(held.lost_error(LostCause::of(ending)));
                    }
                    Err(Failure::No(error)) => return Err(error),
                    Err(Failure::Unknown(error)) if run.may_run() => return Err(unknown(&error)),
                    Err(Failure::Unknown(error)) => {
                        last = Some(error);
                        core.pause().await;
                    }
                }
            }
        })
    }
}

fn unknown(error: &Error) -> Error {
    ErrorKind::Unreachable(format!("it is not known whether the script has run: {error}")).into()
}
