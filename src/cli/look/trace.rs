//! `relatch trace`: who held and who waited for a while, as a picture.
//!
//! What is told is the difference between looks, as by `events`; but when something began is known from the server, to the millisecond.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use relatch::Inspection;

use super::board::{Board, Look};
use super::{Process, interrupted, refusal};
use crate::cli::Outcome;
use crate::cli::picture::{Kind, Picture, Place, Whose};
use crate::cli::reach::{Reach, duration, interval};
use crate::cli::words::{brief, tell};

pub(crate) const LONG: &str = "\
Watches names for a while, and draws who held and who waited on a page that any browser shows, without a network. There the wheel, or + and -, zooms, and / \
searches names, owners, labels and hosts. Ctrl-C ends it before its time; what was seen is written then as well.

The server says which name has changed, and that name is looked at: what lasts for less than that takes, a few milliseconds, may not be seen. Of a name that \
more than 1,000 hold, or wait for, the others are not shown, and no end before they are fewer.";

pub(crate) const EXAMPLES: &str = "\
Examples:
  relatch trace --for 30s --html timeline.html
  relatch trace --for 5m --html jobs.html 'jobs/*'";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which names, as for `ls`; all, if nothing is said
    #[arg(default_value = "*", hide_default_value = true)]
    pattern: String,
    /// For how long: 30s, 5m
    #[arg(long = "for", value_name = "TIME", value_parser = duration, default_value = "30s")]
    length: Duration,
    /// Where to write the page
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    html: PathBuf,
    /// How often to look where the server does not tell
    #[arg(long, value_name = "TIME", value_parser = interval, default_value = "100ms")]
    poll: Duration,
    #[command(flatten)]
    reach: Reach,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Outcome> {
    let page = Place::find(&args.html)?;
    let relatch = args.reach.connect().await?;
    let begun_ms = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    let mut tracer = Tracer {
        picture: Picture::new(
            format!("relatch trace {:?}", args.pattern),
            u64::try_from(begun_ms).ok(),
        ),
        begun: Instant::now(),
    };
    let mut board = Board::new(relatch.clone(), &args.pattern, args.poll);
    tell(&format!("watching for {}", brief(args.length)));
    let over = tokio::time::sleep(args.length);
    let mut over = std::pin::pin!(over);
    let mut interrupted = std::pin::pin!(interrupted());
    let (mut away, mut told, mut failed) = (false, (0, 0), None);
    let mut ticks = tokio::time::interval(TELLS);
    'watching: loop {
        let found = {
            // One look may take longer than it is told how much was seen.
            let mut found = std::pin::pin!(board.next());
            loop {
                tokio::select! {
                    found = &mut found => break found,
                    () = &mut over => break 'watching,
                    _ = &mut interrupted => break 'watching,
                    _ = ticks.tick() => {
                        let count = tracer.picture.count();
                        if std::mem::replace(&mut told, count) != count {
                            tell(&format!("{} go on, {} are over", count.0, count.1));
                        }
                    }
                }
            }
        };
        match found {
            Ok(looks) => looks.iter().for_each(|look| tracer.look(look)),
            // What was seen is shown all the same.
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
        for (name, error) in board.refused() {
            tell(&refusal(&name, &error));
        }
        match board.missing() {
            // It comes back, or the time is over.
            Some(error) if !std::mem::replace(&mut away, true) => tell(&format!("{error}; trying on")),
            None => away = false,
            Some(_) => {}
        }
    }
    let until = tracer.at(Duration::ZERO);
    let (on, over) = tracer.picture.count();
    tracer.picture.write(until, &page)?;
    tell(&format!(
        "{} shows {} spans in which somebody held or waited",
        args.html.display(),
        on + over
    ));
    let _ = relatch.close().await;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(Outcome::Yes),
    }
}

/// How often it is told how much was seen.
const TELLS: Duration = Duration::from_millis(500);

struct Tracer {
    picture: Picture,
    begun: Instant,
}

impl Tracer {
    /// So long ago, as a time of the picture.
    fn at(&self, ago: Duration) -> u64 {
        let at = self.begun.elapsed().saturating_sub(ago);
        u64::try_from(at.as_micros()).unwrap_or(u64::MAX)
    }

    fn look(&mut self, look: &Look) {
        let seen: &Inspection = &look.after.what;
        let late = look.after.at.elapsed();
        let mut here = std::collections::HashSet::new();
        let rows = seen
            .waiters
            .iter()
            .map(|w| (&w.request, Kind::Wait, w.waited, &w.owner, &w.label, &w.client))
            .chain(seen.holders.iter().map(|h| {
                (
                    &h.request,
                    Kind::Held(h.mode),
                    h.held_for,
                    &h.owner,
                    &h.label,
                    &h.client,
                )
            }));
        for (request, kind, since, owner, label, client) in rows {
            here.insert(request.clone());
            let process = Process::of(client.as_ref(), None);
            let whose = Whose {
                group: seen.name.clone(),
                lane: None,
                chain: request.clone(),
                owner: owner.to_string(),
                who: process.words(),
                label: label.clone().unwrap_or_default(),
            };
            let at = match self.picture.goes_on(request) {
                // A downgrade: held for longer, but not in this mode.
                Some(Kind::Held(_)) => self.at(late),
                _ => self.at(since + late),
            };
            self.picture.begin(request, whose, kind, at);
        }
        let now = self.at(late);
        let name = &seen.name;
        // Lists are cut: who is not on them may go on.
        let (holders_cut, waiters_cut) = (seen.holders_cut(), seen.waiters_cut());
        let goes_on = |kind: Kind| match kind {
            Kind::Wait => waiters_cut || holders_cut,
            _ => holders_cut,
        };
        self.picture.end_where(now, |request, whose, kind| {
            whose.group == *name && !here.contains(request) && !goes_on(kind)
        });
    }
}

#[cfg(test)]
mod tests {
    use relatch::Relatch;

    use super::super::board::Seen;
    use super::*;

    #[tokio::test]
    async fn who_is_cut_off_a_list_goes_on_in_the_picture() {
        let relatch = Relatch::embedded();
        let lock = relatch.rwlock("it").expect("it is a name");
        let read = |lease| lock.read().lease(Duration::from_secs(lease)).into_future();
        let mut tracer = Tracer {
            picture: Picture::new("it", None),
            begun: Instant::now(),
        };
        let mut look = async || {
            let what = relatch.inspect("it").await.expect("it can be looked at");
            let at = Instant::now();
            tracer.look(&Look {
                before: None,
                after: Seen { at, what },
                told: true,
                gap: false,
            });
            tracer.picture.count()
        };
        let mut holds = Vec::new();
        for _ in 0..1000 {
            holds.push(read(600).await.expect("others read"));
        }
        assert_eq!(look().await, (1000, 0));
        // Those that lapse first come first.
        for _ in 0..5 {
            holds.push(read(60).await.expect("others read"));
        }
        assert_eq!(look().await, (1005, 0));
        holds.truncate(10);
        while relatch
            .inspect("it")
            .await
            .expect("it can be looked at")
            .holder_count
            > 10
        {
            tokio::task::yield_now().await;
        }
        assert_eq!(look().await, (10, 995));
    }
}
