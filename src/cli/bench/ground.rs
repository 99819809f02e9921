//! What every case stands on: clients, names, time, progress.
//!
//! It remembers every client and every name it handed out, so that it can end and delete them whatever became of the case.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use relatch::{Builder, Embedded, Owner, Relatch};
use tokio::process::Child;
use tokio::time::timeout;

use super::report::Case;
use super::server::Server;

/// No renewal comes between while something else is measured.
const LEASE: Duration = Duration::from_secs(120);

/// What a run that was killed leaves expires after this and a lease.
const RETENTION: Duration = Duration::from_secs(60);

/// Children that were told to have ended by then.
const WIND_UP: Duration = Duration::from_secs(5);

pub(crate) struct Ground {
    pub(crate) redis: Option<Server>,
    pub(crate) quick: bool,
    pub(crate) progress: Progress,
    embedded: Embedded,
    url: Option<String>,
    seconds: Duration,
    prefix: String,
    names: Mutex<Vec<String>>,
    clients: Mutex<Vec<Relatch>>,
    children: Mutex<Vec<Child>>,
    notes: Mutex<Vec<String>>,
}

pub(crate) fn builder() -> Builder {
    Relatch::builder()
        .lease(LEASE)
        .claim(LEASE / 4)
        .fence_retention(RETENTION)
        .connect_timeout(Duration::from_secs(3))
        // Thousands of calls at once take a busy server a while.
        .response_timeout(Duration::from_secs(20))
        // What is counted is the case's, not the links' own.
        .idle_ping(Duration::from_secs(600))
}

impl Ground {
    pub(crate) async fn new(url: Option<&str>, seconds: u64, quick: bool) -> anyhow::Result<Self> {
        let prefix = format!("relatch-bench/{}", Owner::new());
        // What is counted and compared is one server: in a cluster the master of one slot.
        let in_cluster = url.is_some_and(|url| {
            url.split_once("://")
                .is_some_and(|(kind, _)| kind.ends_with("-cluster"))
        });
        let prefix = if in_cluster {
            format!("{{{prefix}}}")
        } else {
            prefix
        };
        let mut ground = Self {
            redis: None,
            quick,
            progress: Progress::new(),
            embedded: Embedded::new(),
            url: url.map(Into::into),
            seconds: Duration::from_secs(seconds),
            prefix,
            names: Mutex::default(),
            clients: Mutex::default(),
            children: Mutex::default(),
            notes: Mutex::default(),
        };
        if url.is_some() {
            let client = ground
                .client()
                .await
                .context("the server can't be measured; without --redis none is needed")?;
            ground.redis = Some(Server::connect(&client, &ground.name("any")).await?);
            ground.clean().await?;
        }
        Ok(ground)
    }

    pub(crate) async fn client(&self) -> anyhow::Result<Relatch> {
        self.client_of(builder()).await
    }

    pub(crate) async fn client_of(&self, builder: Builder) -> anyhow::Result<Relatch> {
        let client = match &self.url {
            None => builder.embedded_in(&self.embedded)?,
            Some(url) => builder.url(url).connect().await?,
        };
        self.clients.lock().push(client.clone());
        Ok(client)
    }

    pub(crate) fn url(&self) -> &str {
        self.url.as_deref().unwrap_or_default()
    }

    /// A name of this run's own, whose keys are deleted after the case.
    pub(crate) fn name(&self, what: impl std::fmt::Display) -> String {
        let name = format!("{}/{what}", self.prefix);
        self.names.lock().push(name.clone());
        name
    }

    /// The same for names that were made elsewhere; each counts once.
    pub(crate) fn names_too(&self, names: &[String]) {
        let mut all = self.names.lock();
        if names.first().is_some_and(|first| !all.contains(first)) {
            all.extend_from_slice(names);
        }
    }

    /// A process that ends by itself, and cleans up, when its stdin does.
    pub(crate) fn child(&self, child: Child) {
        self.children.lock().push(child);
    }

    /// Ends every child and every client, which give back what they hold, and deletes every key.
    pub(crate) async fn clean(&self) -> anyhow::Result<()> {
        let children = std::mem::take(&mut *self.children.lock());
        for mut child in children {
            // One that is stuck is killed when it is dropped; its keys expire.
            if let Ok(ended) = timeout(WIND_UP, child.wait()).await {
                ended?;
            }
        }
        // Whoever interrupts this does it again: nothing is forgotten before it is done.
        let clients = self.clients.lock().clone();
        for client in &clients {
            client.close().await?;
        }
        self.clients.lock().drain(..clients.len());
        let names = self.names.lock().clone();
        if let Some(redis) = &self.redis {
            redis.delete(&names).await?;
        }
        self.names.lock().drain(..names.len());
        Ok(())
    }

    /// What a reader of the result should know.
    pub(crate) fn note(&self, note: String) {
        self.notes.lock().push(note);
    }

    pub(crate) fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock())
    }

    /// One of two sizes.
    pub(crate) fn size(&self, usual: usize, quick: usize) -> usize {
        if self.quick { quick } else { usual }
    }

    pub(crate) fn seconds(&self) -> Duration {
        self.seconds
    }

    /// Repeats `round` for this case's time, and at least so often.
    pub(crate) async fn rounds(
        &self,
        least: usize,
        mut round: impl AsyncFnMut(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut done = 0;
        while done < least || begun.elapsed() < self.seconds {
            round(done).await?;
            done += 1;
            let share = begun.elapsed().as_secs_f64() / self.seconds.as_secs_f64();
            self.progress.show(share.min(1.0), &format!("{done} rounds"));
            // On the embedded backend nothing ever waits: let Ctrl-C have its turn.
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

/// One line that changes, on a terminal only.
pub(crate) struct Progress(Option<ProgressBar>);

impl Progress {
    const STEPS: f64 = 1000.0;

    fn new() -> Self {
        Self(std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(Self::STEPS as u64);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix:24} {bar:20} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        }))
    }

    pub(crate) fn begin(&self, case: Case, at: usize, of: usize) {
        if let Some(bar) = &self.0 {
            bar.set_prefix(format!("{case} ({} of {of})", at + 1));
        }
        self.show(0.0, "");
    }

    pub(crate) fn show(&self, share: f64, message: &str) {
        if let Some(bar) = &self.0 {
            // Shares are between 0 and 1.
            bar.set_position((share * Self::STEPS) as u64);
            bar.set_message(message.to_owned());
        }
    }

    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// The middle one; not a number if there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The one below which such a share of them is.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (share * sorted.len() as f64) as usize;
    sorted
        .get(at.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

/// So many of it, in words.
pub(crate) fn some(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {what}{plural}", HumanCount(count as u64))
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(median(&values), 51.0);
        assert_eq!(percentile(&values, 0.99), 100.0);
        assert_eq!(percentile(&values, 1.0), 100.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert!(median(&[]).is_nan());
    }
}
