//! `relatch events`: what happens to names, as lines.
//!
//! An event is the difference between two looks at a name. The server tells which name to look at as soon as it changes, so what lasts
//! for a few milliseconds is seen; what comes and goes within that is not, except that a fence that grew tells of a write hold.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use relatch::{Holder, Mode, Waiting};
use serde::Serialize;

use super::board::{Board, Look};
use super::{Process, interrupted, refusal, time};
use crate::cli::Outcome;
use crate::cli::reach::{Reach, interval};
use crate::cli::words::{brief, printable, say, tell};

pub(crate) const LONG: &str = "\
Tells what happens to names from now on, a line each, until it is interrupted:

  acquire  a hold was granted, and nobody was seen to wait for it
  grant    a hold was granted to a waiter
  upgrade  an upgradable hold became a write; downgrade: a hold became a weaker one
  release  a hold was given back
  lapse    a hold's lease ran out
  end      a hold is over, and how is not known: the server was away, or looked at too seldom
  revoke   a hold was revoked, and is not given back yet
  queue    somebody waits
  leave    somebody waits no more, and was not seen to hold
  passed   a write hold came and went unseen

The server says which name has changed, and that name is looked at: what lasts for less than that takes, a few milliseconds, may not be seen. A server whose \
access rules forbid CLIENT TRACKING is looked at every --poll instead, and what lasts for less than that is not seen. While more than 1,000 owners hold a name, or \
more than 1,000 requests wait for it, only the first 1,000 are looked at: then no ends are told there, as nobody knows who is merely not among them.";

pub(crate) const EXAMPLES: &str = "\
Examples:
  relatch events 'jobs/*'
  relatch events --json | jq -c 'select(.event == \"lapse\")'";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which names, as for `ls`; all, if nothing is said
    #[arg(default_value = "*", hide_default_value = true)]
    pattern: String,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
    /// How often to look where the server does not tell
    #[arg(long, value_name = "TIME", value_parser = interval, default_value = "500ms")]
    poll: Duration,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Event {
    time: String,
    pub(crate) event: &'static str,
    pub(crate) name: String,
    mode: Option<Mode>,
    owner: Option<String>,
    request: Option<String>,
    label: Option<String>,
    /// The last fence of the name.
    fence: Option<u64>,
    /// For how long it was held, or waited for.
    after_ms: Option<u64>,
    #[serde(flatten)]
    process: Process,
}

impl Event {
    fn line(&self) -> String {
        let mut line = format!("{}  {:<9} {}", self.time, self.event, printable(&self.name));
        if let Some(mode) = self.mode {
            line.push_str(&format!("  {mode}"));
        }
        if let Some(ms) = self.after_ms {
            line.push_str(&format!(" after {}", brief(Duration::from_millis(ms))));
        }
        if self.request.is_some() {
            line.push_str(&format!("  {}", self.process.words()));
        }
        if let Some(label) = &self.label {
            line.push_str(&format!(", {:?}", printable(label)));
        }
        line
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Outcome> {
    let relatch = args.reach.connect().await?;
    let mut board = Board::new(relatch.clone(), &args.pattern, args.poll);
    let mut interrupted = std::pin::pin!(interrupted());
    let (mut begun, mut away, mut told) = (false, false, true);
    loop {
        let found = tokio::select! {
            found = board.next() => found,
            over = &mut interrupted => {
                over.context("Ctrl-C can't be heard")?;
                break;
            }
        };
        let looks = found?;
        for (name, error) in board.refused() {
            tell(&refusal(&name, &error));
        }
        match board.missing() {
            // It comes back, or somebody ends this.
            Some(error) if !std::mem::replace(&mut away, true) => tell(&format!("{error}; trying on")),
            None if std::mem::take(&mut away) => {
                tell("the server is back; what happened meanwhile is told as far as it can be seen now");
            }
            _ => {}
        }
        if told && !board.is_told() {
            told = false;
            tell(&format!(
                "the server's access rules do not let this user have CLIENT TRACKING: looking every {}; what lasts for less is not seen",
                brief(args.poll)
            ));
        }
        if !std::mem::replace(&mut begun, true) {
            let busy = looks.iter().filter(|look| !look.after.is_idle()).count();
            let names = if busy == 1 { "name is" } else { "names are" };
            tell(&format!("watching; {busy} {names} held or waited for now"));
            continue;
        }
        for event in looks.iter().flat_map(between) {
            say(&if args.json {
                serde_json::to_string(&event)?
            } else {
                event.line()
            })?;
        }
    }
    let _ = relatch.close().await;
    Ok(Outcome::Yes)
}

/// How exactly it is known when a lease ends.
const ROUNDED: Duration = Duration::from_millis(10);
/// What is renewed is farther from its end than that, and what is given back so near to it is rare.
const NEAR: Duration = Duration::from_secs(1);

/// How a hold ended that was there before a look.
fn ending(look: &Look, gone: &Holder) -> &'static str {
    let since = look
        .before
        .as_ref()
        .map_or(Duration::ZERO, |before| look.after.at.duration_since(before.at));
    // Given back, lapsed, or forgotten by a server that has lost its data: nobody was there to see.
    if look.gap {
        return "end";
    }
    if since + ROUNDED < gone.lease_left {
        return "release";
    }
    // Every renewal and every release is told, and looked at. Where they are not, what had long to go may have been either.
    if look.told || gone.lease_left <= NEAR {
        "lapse"
    } else {
        "end"
    }
}

/// What happened between two looks at a name.
pub(crate) fn between(look: &Look) -> Vec<Event> {
    let new = &look.after.what;
    let old = look.before.as_ref();
    let none = (Vec::new(), Vec::new());
    let (old_holders, old_waiters) =
        old.map_or((&none.0, &none.1), |old| (&old.what.holders, &old.what.waiters));
    let was_held: BTreeMap<&str, &Holder> = old_holders
        .iter()
        .map(|held| (held.request.as_str(), held))
        .collect();
    let is_held: BTreeMap<&str, &Holder> = new
        .holders
        .iter()
        .map(|held| (held.request.as_str(), held))
        .collect();
    let waited: BTreeMap<&str, &Waiting> = old_waiters
        .iter()
        .map(|waiting| (waiting.request.as_str(), waiting))
        .collect();
    let now = time(SystemTime::now());
    let of = |event: &'static str| Event {
        time: now.clone(),
        event,
        name: new.name.clone(),
        mode: None,
        owner: None,
        request: None,
        label: None,
        fence: new.fence,
        after_ms: None,
        process: Process::default(),
    };
    let held = |event: &'static str, held: &Holder| Event {
        mode: Some(held.mode),
        owner: Some(held.owner.to_string()),
        request: Some(held.request.clone()),
        label: held.label.clone(),
        process: Process::of(held.client.as_ref(), held.connected),
        ..of(event)
    };
    let waits = |event: &'static str, waiting: &Waiting| Event {
        mode: Some(waiting.mode),
        owner: Some(waiting.owner.to_string()),
        request: Some(waiting.request.clone()),
        label: waiting.label.clone(),
        process: Process::of(waiting.client.as_ref(), waiting.connected),
        ..of(event)
    };
    let ms = |time: Duration| u64::try_from(time.as_millis()).ok();
    let mut events = Vec::new();
    // Lists are cut. Who is not on one any more may hold or wait on; who was there before the last look was not on that one.
    let since = old.map_or(Duration::ZERO, |old| look.after.at.duration_since(old.at));
    let holders_were_cut = old.is_some_and(|old| old.what.holders_cut());
    let waiters_were_cut = old.is_some_and(|old| old.what.waiters_cut());
    let entered = |holder: &&Holder| {
        let unseen = holders_were_cut && holder.held_for > since;
        !unseen && !was_held.contains_key(holder.request.as_str())
    };
    // An upgrade is a new request in the place of an old one.
    let upgraded = |gone: &Holder| {
        gone.mode == Mode::Upgradable
            && new
                .holders
                .iter()
                .filter(entered)
                .any(|held| held.mode == Mode::Write && held.owner == gone.owner)
    };
    for holder in &new.holders {
        let before = was_held.get(holder.request.as_str());
        if holder.revoked && before.is_none_or(|before| !before.revoked) {
            events.push(held("revoke", holder));
        }
        if before.is_some_and(|before| before.mode > holder.mode) {
            events.push(held("downgrade", holder));
        }
    }
    if !new.holders_cut() {
        for gone in old_holders
            .iter()
            .filter(|gone| !is_held.contains_key(gone.request.as_str()))
        {
            if upgraded(gone) {
                continue;
            }
            let after_ms = ms(gone.held_for + since);
            events.push(Event {
                after_ms,
                ..held(ending(look, gone), gone)
            });
        }
    }
    let fences = old.and_then(|old| old.what.fence).zip(new.fence);
    let writes = new
        .holders
        .iter()
        .filter(entered)
        .any(|held| held.mode == Mode::Write);
    if fences.is_some_and(|(old, new)| new > old) && !writes {
        events.push(of("passed"));
    }
    for holder in new.holders.iter().filter(entered) {
        let upgrade = holder.mode == Mode::Write
            && old_holders.iter().any(|gone| {
                gone.mode == Mode::Upgradable
                    && gone.owner == holder.owner
                    && !is_held.contains_key(gone.request.as_str())
            });
        let waiting = waited.get(holder.request.as_str());
        let event = match waiting {
            _ if upgrade => "upgrade",
            Some(_) => "grant",
            None => "acquire",
        };
        let after_ms = waiting.and_then(|waiting| ms(waiting.waited + since));
        events.push(Event {
            after_ms,
            ..held(event, holder)
        });
    }
    for waiting in &new.waiters {
        let unseen = waiters_were_cut && waiting.waited > since;
        if !unseen && !waited.contains_key(waiting.request.as_str()) {
            events.push(waits("queue", waiting));
        }
    }
    if !new.waiters_cut() && !new.holders_cut() {
        for waiting in old_waiters {
            let there = new.waiters.iter().any(|other| other.request == waiting.request);
            if !there && !is_held.contains_key(waiting.request.as_str()) {
                events.push(waits("leave", waiting));
            }
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use relatch::Relatch;

    use super::super::board::Seen;
    use super::*;

    async fn seen(relatch: &Relatch) -> Seen {
        let at = Instant::now();
        let what = relatch.inspect("it").await.expect("it can be looked at");
        Seen { at, what }
    }

    fn told(before: &Seen, after: &Seen) -> Vec<&'static str> {
        let look = Look {
            before: Some(before.clone()),
            after: after.clone(),
            told: true,
            gap: false,
        };
        let mut told: Vec<_> = between(&look).iter().map(|event| event.event).collect();
        told.dedup();
        told
    }

    #[tokio::test]
    async fn who_is_cut_off_a_list_has_not_ended_and_who_comes_back_on_it_has_not_begun() {
        let relatch = Relatch::embedded();
        let lock = relatch.rwlock("it").expect("it is a name");
        let read = |lease| lock.read().lease(Duration::from_secs(lease)).into_future();
        let mut long = Vec::new();
        for _ in 0..1000 {
            long.push(read(600).await.expect("others read"));
        }
        let full = seen(&relatch).await;
        // Those that lapse first come first.
        let mut short = Vec::new();
        for _ in 0..5 {
            short.push(read(60).await.expect("others read"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        let cut = seen(&relatch).await;
        assert!(cut.what.holders_cut() && !full.what.holders_cut());
        assert_eq!(told(&full, &cut), ["acquire"]);
        for hold in short {
            hold.release().await.expect("it is held");
        }
        let back = seen(&relatch).await;
        assert_eq!(told(&cut, &back), ["release"]);

        // The same in line: an upgradable stands before the readers that wait for a writer.
        drop(long);
        let writer = lock.write().await.expect("the readers have gone");
        let mut waiting: Vec<_> = (0..1000).map(|_| tokio::spawn(read(600))).collect();
        let in_line = async |count| {
            while relatch
                .inspect("it")
                .await
                .expect("it can be looked at")
                .waiter_count
                < count
            {
                tokio::task::yield_now().await;
            }
            seen(&relatch).await
        };
        let full = in_line(1000).await;
        let upgradable = lock.upgradable_read().into_future();
        waiting.push(tokio::spawn(async {
            upgradable.await.map(|_| panic!("nobody leaves"))
        }));
        let cut = in_line(1001).await;
        assert!(cut.what.waiters_cut() && !full.what.waiters_cut());
        assert_eq!(told(&full, &cut), ["queue"]);
        for waiting in waiting {
            waiting.abort();
        }
        drop(writer);
    }

    #[tokio::test]
    async fn an_end_is_told_as_what_is_known_of_it() {
        let relatch = Relatch::embedded();
        let _held = relatch.rwlock("it").expect("it is a name").read().await;
        // No other than the crate itself makes one out of nothing.
        let held = seen(&relatch).await;
        let s = Duration::from_secs;
        for (left, after, told, gap, event) in [
            (s(20), s(3), true, false, "release"),
            (s(20), s(20), true, false, "lapse"),
            // Nobody was there to see: not even a release is sure, as a server may have lost what it knew.
            (s(20), s(3), false, true, "end"),
            (s(20), s(60), false, true, "end"),
            // Looked at from time to time.
            (s(20), s(3), false, false, "release"),
            (s(1), s(2), false, false, "lapse"),
            (s(20), s(60), false, false, "end"),
        ] {
            let (mut before, mut gone) = (held.clone(), held.clone());
            before.what.holders[0].lease_left = left;
            gone.at += after;
            gone.what.holders.clear();
            gone.what.holder_count = 0;
            let look = Look {
                before: Some(before),
                after: gone,
                told,
                gap,
            };
            let events: Vec<_> = between(&look).iter().map(|event| event.event).collect();
            assert_eq!(events, [event], "{left:?} {after:?} {told} {gap}");
        }
    }
}
