//! The commands that look: who holds, since when, and who waits.
//!
//! What they show is a [`View`] of an inspection, by owner; a [`board`] keeps many of them up to date.

mod board;
pub(super) mod doctor;
pub(super) mod events;
pub(super) mod ls;
pub(super) mod revoke;
pub(super) mod show;
pub(super) mod trace;
pub(super) mod watch;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use relatch::{ClientInfo, Error, Inspection, Mode, Owner, Relatch};
use serde::Serialize;

use super::words::{nobody, printable};

pub(crate) const EXIT: &str = "Exit status: 0 all is well; 1 the answer is no (nobody holds, nothing was taken, something is wrong, a part of a cluster does not answer); 2 it could not run.";

/// How many names are looked at at once: enough that the way to the server does not count.
const AT_ONCE: usize = 64;

/// A name, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct View {
    pub(crate) name: String,
    /// The strongest in which it is held.
    pub(crate) mode: Option<Mode>,
    pub(crate) fence: Option<u64>,
    pub(crate) holder_count: u64,
    pub(crate) waiter_count: u64,
    pub(crate) longest_held_ms: Option<u64>,
    pub(crate) longest_wait_ms: Option<u64>,
    pub(crate) holders: Vec<Holding>,
    pub(crate) waiters: Vec<InLine>,
}

/// An owner that holds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Holding {
    pub(crate) owner: Owner,
    pub(crate) mode: Mode,
    /// How many times it is entered, in all modes.
    pub(crate) depth: usize,
    pub(crate) holds: Vec<Entered>,
}

/// One time that an owner has entered.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entered {
    pub(crate) request: String,
    pub(crate) mode: Mode,
    pub(crate) label: Option<String>,
    #[serde(flatten)]
    pub(crate) process: Process,
    pub(crate) since: String,
    pub(crate) held_ms: u64,
    pub(crate) lease_left_ms: u64,
    pub(crate) revoked: bool,
}

/// Somebody who waits.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct InLine {
    pub(crate) place: usize,
    pub(crate) owner: Owner,
    pub(crate) request: String,
    pub(crate) mode: Mode,
    pub(crate) label: Option<String>,
    #[serde(flatten)]
    pub(crate) process: Process,
    pub(crate) waited_ms: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Process {
    pub(crate) host: Option<String>,
    pub(crate) pid: Option<u32>,
    pub(crate) program: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) connected: Option<bool>,
}

impl Process {
    pub(crate) fn of(client: Option<&ClientInfo>, connected: Option<bool>) -> Self {
        Self {
            host: client.map(|client| client.host.clone()),
            pid: client.map(|client| client.pid),
            program: client.map(|client| client.program.clone()),
            version: client.map(|client| client.version.clone()),
            connected,
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.connected == Some(false)
    }

    /// In as little room as it gets.
    fn brief(&self) -> String {
        match (&self.program, &self.host, self.pid) {
            (Some(program), Some(host), Some(pid)) if !self.is_gone() => {
                format!("{}@{} {pid}", printable(program), printable(host))
            }
            _ => self.words(),
        }
    }

    /// In a few words.
    pub(crate) fn words(&self) -> String {
        let gone = if self.is_gone() { ", not connected" } else { "" };
        match (&self.program, self.pid, &self.host) {
            (Some(program), Some(pid), Some(host)) => {
                format!("{} (pid {pid}) on {}{gone}", printable(program), printable(host))
            }
            _ => nobody(self.connected).into(),
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl View {
    pub(crate) fn of(seen: &Inspection) -> Self {
        let now = SystemTime::now();
        let mut holders: Vec<Holding> = Vec::new();
        for held in &seen.holders {
            let entered = Entered {
                request: held.request.clone(),
                mode: held.mode,
                label: held.label.clone(),
                process: Process::of(held.client.as_ref(), held.connected),
                since: time(now.checked_sub(held.held_for).unwrap_or(now)),
                held_ms: ms(held.held_for),
                lease_left_ms: ms(held.lease_left),
                revoked: held.revoked,
            };
            match holders.iter_mut().find(|holding| holding.owner == held.owner) {
                Some(holding) => {
                    holding.mode = holding.mode.max(held.mode);
                    holding.depth += 1;
                    holding.holds.push(entered);
                }
                None => holders.push(Holding {
                    owner: held.owner.clone(),
                    mode: held.mode,
                    depth: 1,
                    holds: vec![entered],
                }),
            }
        }
        let waiters: Vec<InLine> = seen
            .waiters
            .iter()
            .enumerate()
            .map(|(at, waiting)| InLine {
                place: at + 1,
                owner: waiting.owner.clone(),
                request: waiting.request.clone(),
                mode: waiting.mode,
                label: waiting.label.clone(),
                process: Process::of(waiting.client.as_ref(), waiting.connected),
                waited_ms: ms(waiting.waited),
            })
            .collect();
        Self {
            name: seen.name.clone(),
            mode: holders.iter().map(|holding| holding.mode).max(),
            fence: seen.fence,
            holder_count: seen.holder_count,
            waiter_count: seen.waiter_count,
            longest_held_ms: seen.holders.iter().map(|held| ms(held.held_for)).max(),
            longest_wait_ms: seen.waiters.iter().map(|waiting| ms(waiting.waited)).max(),
            holders,
            waiters,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.holder_count == 0 && self.waiter_count == 0
    }

    /// Who holds it, as far as there is room for one.
    pub(crate) fn holder_words(&self) -> String {
        let Some(entered) = self.holders.first().and_then(|holding| holding.holds.first()) else {
            return String::new();
        };
        let more = match self.holder_count.saturating_sub(1) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        match &entered.label {
            Some(label) => format!("{}{more}, {}", printable(label), entered.process.brief()),
            None => format!("{}{more}", entered.process.brief()),
        }
    }
}

/// As everybody reads it. Before 1970, or after 9999, there is no such text.
pub(crate) fn time(at: SystemTime) -> String {
    match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) if since.as_secs() < YEAR_10000 => humantime::format_rfc3339_millis(at).to_string(),
        _ => String::new(),
    }
}

const YEAR_10000: u64 = 253_402_300_800;

pub(super) fn refusal(name: &str, error: &Error) -> String {
    format!("{:?} can't be looked at: {error}", printable(name))
}

/// What was found, and why that may not be all: of several servers one does not answer.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) seen: Vec<Inspection>,
    pub(super) missing: Option<Error>,
    /// The server says no to these names: a key of theirs is another program's, say. Nothing else is hidden by that.
    pub(super) refused: Vec<(String, Error)>,
}

impl Found {
    /// If it says no to all of them, that is no name's fault.
    pub(super) fn or_refused(mut self) -> Result<Self, Error> {
        match self.refused.pop() {
            Some((_, error)) if self.seen.is_empty() && self.missing.is_none() => Err(error),
            last => {
                self.refused.extend(last);
                Ok(self)
            }
        }
    }

    /// What is found of these, as well. Who has been waited for in vain once is not waited for again, not for long.
    async fn and(&mut self, relatch: &Relatch, names: Vec<String>) -> Result<(), Error> {
        let hurry = AtomicBool::new(self.missing.is_some());
        let looks = names.into_iter().map(|name| {
            let hurry = &hurry;
            async move {
                let look = in_time(hurry.load(Ordering::Relaxed), relatch.inspect(&name)).await;
                (look, name)
            }
        });
        let mut looks = futures_util::stream::iter(looks).buffer_unordered(AT_ONCE);
        while let Some((look, name)) = looks.next().await {
            match look {
                Some(Ok(seen)) => self.seen.push(seen),
                Some(Err(error)) if error.is_unreachable() => {
                    hurry.store(true, Ordering::Relaxed);
                    self.missing.get_or_insert(error);
                }
                Some(Err(error)) if error.is_server() => self.refused.push((name, error)),
                Some(Err(error)) => return Err(error),
                None => {}
            }
        }
        Ok(())
    }
}

/// How long a server is waited for that did not answer the last time.
const HURRY: Duration = Duration::from_millis(500);

pub(super) async fn in_time<T>(hurry: bool, answer: impl Future<Output = T>) -> Option<T> {
    match hurry {
        true => tokio::time::timeout(HURRY, answer).await.ok(),
        false => Some(answer.await),
    }
}

/// Looks at every name that matches. `missing`: what could not be seen the last time. An error if nobody answers at all.
async fn all(relatch: &Relatch, pattern: &str, missing: Option<&Error>) -> Result<Found, Error> {
    let mut names = relatch.names(pattern);
    let mut all = Found::default();
    let mut answered = false;
    loop {
        // The names of those that answer come first.
        let failed = match (in_time(missing.is_some(), names.next_page()).await, missing) {
            (Some(Ok(Some(page))), _) => {
                answered = true;
                all.and(relatch, page).await?;
                continue;
            }
            (Some(Ok(None)), _) => return all.or_refused(),
            (Some(Err(error)), _) => error,
            (None, Some(missing)) => missing.clone(),
            (None, None) => continue,
        };
        if !answered || !failed.is_unreachable() {
            return Err(failed);
        }
        all.missing = Some(failed);
        return Ok(all);
    }
}

/// Looks at these. `missing`: what could not be seen the last time; what does not answer at once then is left out.
pub(super) async fn each(
    relatch: &Relatch,
    names: Vec<String>,
    missing: Option<&Error>,
) -> Result<Found, Error> {
    let mut found = Found {
        missing: missing.cloned(),
        ..Found::default()
    };
    found.and(relatch, names).await?;
    Ok(found)
}

/// By Ctrl-C, or by whoever ends a service.
pub(crate) async fn interrupted() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            over = tokio::signal::ctrl_c() => over,
            _ = term.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_far_off_shows_no_time() {
        let at = |seconds| time(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(1_795_276_902), "2026-11-21T16:01:42.000Z");
        assert_eq!(at(YEAR_10000 - 1), "9999-12-31T23:59:59.000Z");
        assert_eq!(at(YEAR_10000), "");
        assert_eq!(time(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "");
    }
}
