//! Who is in the way, told to whoever waits: a line that changes at a terminal; elsewhere one at first, and another when somebody else is in the way.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use relatch::{Inspection, Mode, Owner, Relatch};

use crate::cli::words::{self, Aside, brief, printable};

pub(super) struct Waiting<'a> {
    pub(super) relatch: &'a Relatch,
    pub(super) name: &'a str,
    pub(super) mode: Mode,
    pub(super) owner: &'a Owner,
    pub(super) quiet: bool,
    pub(super) aside: &'a Aside,
}

/// Most waits are over before anybody could read who was in the way.
const SILENT: Duration = Duration::from_millis(300);
/// How often somebody at a terminal is told.
const AT_TERMINAL: Duration = Duration::from_secs(1);
/// How often, at most, a log is.
const IN_LOG: Duration = Duration::from_secs(5);

impl Waiting<'_> {
    /// Until it is dropped, and leaves no line behind.
    pub(super) async fn tell(&self) -> Infallible {
        if self.quiet {
            std::future::pending::<()>().await;
        }
        let begun = Instant::now();
        tokio::time::sleep(SILENT).await;
        let bar = std::io::stderr().is_terminal().then(|| Line::new(self));
        let mut last = None;
        loop {
            let seen = self.relatch.inspect(self.name).await;
            let in_the_way = match &seen {
                Ok(seen) => self.in_the_way(seen),
                Err(error) => format!(": {error}"),
            };
            match &bar {
                Some(line) => line.0.set_message(format!("{}{in_the_way}", self.head(begun))),
                None => {
                    let who = seen
                        .as_ref()
                        .map(|seen| seen.holders.iter().map(|h| h.request.clone()).collect::<Vec<_>>());
                    let who = who.unwrap_or_default();
                    if last.as_ref() != Some(&who) {
                        self.aside.tell(format!("{}{in_the_way}", self.head(begun)));
                        last = Some(who);
                    }
                }
            }
            tokio::time::sleep(if bar.is_some() { AT_TERMINAL } else { IN_LOG }).await;
        }
    }

    /// Who is in the way now, for a message that ends.
    pub(super) async fn who(&self) -> String {
        match self.relatch.inspect(self.name).await {
            Ok(seen) => self.in_the_way(&seen),
            Err(_) => String::new(),
        }
    }

    fn head(&self, begun: Instant) -> String {
        format!(
            "waiting {} to {} {:?}",
            brief(begun.elapsed()),
            self.mode,
            printable(self.name)
        )
    }

    fn in_the_way(&self, seen: &Inspection) -> String {
        let mut text = String::new();
        let mut holders = seen.holders.iter().filter(|holder| holder.owner != *self.owner);
        if let Some(holder) = holders.next() {
            let _ = write!(text, ": held as {}", words::holder(holder));
            let more = seen.holder_count.saturating_sub(1);
            if more > 0 {
                let _ = write!(text, "; and {more} more");
            }
        }
        let ahead = seen
            .waiters
            .iter()
            .take_while(|waiting| waiting.owner != *self.owner)
            .count();
        if ahead > 0 {
            let _ = write!(text, "; {ahead} ahead in line");
        }
        text
    }
}

struct Line(ProgressBar);

impl Line {
    fn new(waiting: &Waiting<'_>) -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        bar.set_message(waiting.head(Instant::now()));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
