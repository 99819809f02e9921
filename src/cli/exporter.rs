//! `relatch exporter`: what a server knows of its locks, for Prometheus.
//!
//! A scrape costs a server little, however often it is made and by however many: what was seen is kept for `--interval`, at most `--looks` names are
//! looked at, and at most `--names` of them, those with the longest lines, have series of their own. What is left out is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use relatch::{Inspection, Mode, Relatch};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};

use super::Outcome;
use super::look::{each, in_time, interrupted, refusal};
use super::reach::{Reach, interval};
use super::words::tell;

pub(crate) const LONG: &str = "\
Serves what the server knows of its locks for Prometheus, under /metrics. What each process does itself, such as its waits as a histogram, its crate tells \
through the feature `metrics`: docs/observability.md has both, and docs/grafana.json a dashboard for them.";

pub(crate) const EXAMPLES: &str = "\
Examples:
  relatch exporter --redis redis://127.0.0.1:6379
  relatch exporter --listen 0.0.0.0:9188 --names 20 'jobs/*'";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which names, as for `ls`; all, if nothing is said
    #[arg(default_value = "*", hide_default_value = true)]
    pattern: String,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", value_parser = address, default_value = "127.0.0.1:9188")]
    listen: SocketAddr,
    /// For how long what was seen is told again
    #[arg(long, value_name = "TIME", value_parser = interval, default_value = "5s")]
    interval: Duration,
    /// At most so many names have series of their own: those with the longest lines
    #[arg(long, value_name = "N", default_value_t = 20)]
    names: usize,
    /// At most so many names are looked at, in the order of their bytes
    #[arg(long, value_name = "N", default_value_t = 2000)]
    looks: usize,
    #[command(flatten)]
    reach: Reach,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "it is not an address and a port; write 127.0.0.1:9188, 0.0.0.0:9188 or [::]:9188".into()
    })
}

/// So many ask at once; others wait.
const CONNECTIONS: usize = 32;
/// Whoever has not said what it wants by then is not waited for.
const HEADERS: Duration = Duration::from_secs(5);
/// Nor is whoever has not taken its answer by then. Longer than anybody waits for a scrape.
const ANSWERED: Duration = Duration::from_secs(30);

struct Exporter {
    relatch: Relatch,
    pattern: String,
    interval: Duration,
    names: usize,
    looks: usize,
    last: Mutex<Option<(Instant, Bytes)>>,
    /// Why the last look did not see all: then the next does not wait for it again.
    missing: Mutex<Option<relatch::Error>>,
    /// Names that could not be looked at the last time.
    refused: parking_lot::Mutex<BTreeSet<String>>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Outcome> {
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("{} can't be listened on; name another with --listen", args.listen))?;
    let relatch = args.reach.connect().await?;
    let exporter = Arc::new(Exporter {
        relatch: relatch.clone(),
        pattern: args.pattern,
        interval: args.interval,
        names: args.names,
        looks: args.looks,
        last: Mutex::default(),
        missing: Mutex::default(),
        refused: parking_lot::Mutex::default(),
    });
    tell(&format!(
        "http://{}/metrics",
        listener.local_addr().unwrap_or(args.listen)
    ));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut interrupted = std::pin::pin!(interrupted());
    loop {
        // A place first, or a crowd would take all files that there are.
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            accepted = accepted => accepted,
            over = &mut interrupted => {
                over.context("Ctrl-C can't be heard")?;
                break;
            }
        };
        let Ok((stream, _)) = stream else {
            // Too many files are open, say: that passes.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let exporter = exporter.clone();
        tokio::spawn(async move {
            exporter.serve(stream).await;
            drop(place);
        });
    }
    let _ = relatch.close().await;
    Ok(Outcome::Yes)
}

impl Exporter {
    /// Answers one request.
    async fn serve(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(|request| {
            let exporter = self.clone();
            async move { Ok::<_, Infallible>(exporter.answer(request).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        // Whoever breaks off has had enough.
        let _ = tokio::time::timeout(ANSWERED, served).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, kind, body) = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/metrics") => (
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                self.metrics().await,
            ),
            (&Method::GET | &Method::HEAD, "/") => (
                StatusCode::OK,
                "text/plain; charset=utf-8",
                "relatch exporter: see /metrics\n".into(),
            ),
            (&Method::GET | &Method::HEAD, _) => (
                StatusCode::NOT_FOUND,
                "text/plain; charset=utf-8",
                "there is only /metrics\n".into(),
            ),
            _ => (
                StatusCode::METHOD_NOT_ALLOWED,
                "text/plain; charset=utf-8",
                "only GET\n".into(),
            ),
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        }
        response
    }

    async fn metrics(&self) -> Bytes {
        // Whoever comes while one looks waits for that, and gets the same.
        let mut last = self.last.lock().await;
        if let Some((at, body)) = &*last
            && at.elapsed() < self.interval
        {
            return body.clone();
        }
        let begun = Instant::now();
        let mut families = Families::default();
        match self.look().await {
            Ok(seen) => {
                if let Some(error) = &seen.missing {
                    tell(&format!("not all: {error}"));
                }
                families.add("relatch_server_up", "Whether the server answered", &[], 1.0);
                self.tell(&mut families, &seen);
            }
            Err(error) => {
                tell(&error.to_string());
                families.add("relatch_server_up", "Whether the server answered", &[], 0.0);
            }
        }
        families.add(
            "relatch_server_look_seconds",
            "How long it took to look",
            &[],
            begun.elapsed().as_secs_f64(),
        );
        let body = Bytes::from(families.text());
        *last = Some((Instant::now(), body.clone()));
        body
    }

    async fn look(&self) -> Result<Seen, relatch::Error> {
        let mut pages = self.relatch.names(&self.pattern);
        let mut names = Vec::new();
        let mut before = self.missing.lock().await;
        let (mut answered, mut missing) = (false, None);
        loop {
            match (in_time(before.is_some(), pages.next_page()).await, &*before) {
                (Some(Ok(Some(page))), _) => {
                    answered = true;
                    names.extend(page);
                }
                (Some(Ok(None)), _) => break,
                // What the others of a cluster know is told.
                (Some(Err(error)), _) if answered && error.is_unreachable() => {
                    missing = Some(error);
                    break;
                }
                (Some(Err(error)), _) => return Err(error),
                (None, Some(error)) if !answered => return Err(error.clone()),
                (None, before) => {
                    missing.clone_from(before);
                    break;
                }
            }
        }
        before.clone_from(&missing);
        drop(before);
        names.sort_unstable();
        let all = names.len();
        names.truncate(self.looks);
        let looked = names.len();
        let found = each(&self.relatch, names, missing.as_ref()).await?.or_refused()?;
        let left_out = all - looked + found.refused.len();
        let missing = missing.or(found.missing);
        let mut told = BTreeSet::new();
        for (name, error) in found.refused {
            if !self.refused.lock().contains(&name) {
                tell(&refusal(&name, &error));
            }
            told.insert(name);
        }
        *self.refused.lock() = told;
        // One that waits is in no circle; if that is all who wait.
        let waiting: u64 = found.seen.iter().map(|name| name.waiter_count).sum();
        let circles = match waiting {
            // That would wait for it once more.
            _ if missing.is_some() => None,
            0..2 if left_out == 0 => Some(0),
            _ => match self.relatch.deadlocks().await {
                // That there are none can't be said where not all was looked at.
                Ok(found) if found.circles.is_empty() && !found.cut.is_empty() => None,
                Ok(found) => Some(found.circles.len()),
                // What can't be looked at may be part of one.
                Err(error) if error.is_unreachable() || error.is_server() => None,
                Err(error) => return Err(error),
            },
        };
        Ok(Seen {
            seen: found.seen,
            left_out,
            all,
            circles,
            missing,
        })
    }

    fn tell(&self, families: &mut Families, found: &Seen) {
        let Seen {
            seen,
            all,
            left_out,
            circles,
            missing,
        } = found;
        families.add(
            "relatch_server_incomplete",
            "Whether a part of a cluster did not answer: then all numbers are without it",
            &[],
            number(usize::from(missing.is_some())),
        );
        let count = |wanted: &dyn Fn(&Inspection) -> bool| seen.iter().filter(|name| wanted(name)).count();
        families.add(
            "relatch_server_names",
            "Names of which the server keeps anything: held, waited for, or lately so",
            &[],
            number(*all),
        );
        families.add(
            "relatch_server_names_left_out",
            "Names that were not looked at: more than --looks, or the server says no to them",
            &[],
            number(*left_out),
        );
        families.add(
            "relatch_server_names_held",
            "Names that somebody holds",
            &[],
            number(count(&|name| name.holder_count > 0)),
        );
        families.add(
            "relatch_server_names_waited",
            "Names that somebody waits for",
            &[],
            number(count(&|name| name.waiter_count > 0)),
        );
        for mode in [Mode::Read, Mode::Upgradable, Mode::Write] {
            let label = [("mode", mode.as_str())];
            let holds = seen
                .iter()
                .flat_map(|name| &name.holders)
                .filter(|held| held.mode == mode);
            families.add(
                "relatch_server_holds",
                "Holds, by mode",
                &label,
                number(holds.count()),
            );
            let waits = seen
                .iter()
                .flat_map(|name| &name.waiters)
                .filter(|waiting| waiting.mode == mode);
            families.add(
                "relatch_server_waiters",
                "Requests in line, by mode",
                &label,
                number(waits.count()),
            );
        }
        families.add(
            "relatch_server_longest_hold_seconds",
            "How long the oldest hold has been held",
            &[],
            seconds(seen.iter().filter_map(longest_hold).max()),
        );
        families.add(
            "relatch_server_longest_wait_seconds",
            "How long the oldest request in line has waited",
            &[],
            seconds(seen.iter().filter_map(longest_wait).max()),
        );
        let holds = || seen.iter().flat_map(|name| &name.holders);
        let gone = holds().filter(|held| held.connected == Some(false)).count();
        let unknown = holds().filter(|held| held.connected.is_none()).count();
        // Where nothing is known, none would be a guess.
        if unknown == 0 || unknown < holds().count() {
            families.add(
                "relatch_server_holds_of_gone_clients",
                "Holds whose process is not connected",
                &[],
                number(gone),
            );
        }
        families.add(
            "relatch_server_holds_of_unknown_clients",
            "Holds of which it is not known whether their process is connected",
            &[],
            number(unknown),
        );
        if let Some(circles) = circles {
            families.add(
                "relatch_server_deadlocks",
                "Circles of owners that wait for each other",
                &[],
                number(*circles),
            );
        }

        let mut busy: Vec<&Inspection> = seen
            .iter()
            .filter(|name| name.holder_count + name.waiter_count > 0)
            .collect();
        busy.sort_by(|a, b| {
            let line = |name: &Inspection| (name.waiter_count, longest_wait(name), longest_hold(name));
            line(b).cmp(&line(a)).then_with(|| a.name.cmp(&b.name))
        });
        for name in busy.into_iter().take(self.names) {
            let label = [("name", name.name.as_str())];
            families.add(
                "relatch_server_name_holders",
                "Owners that hold a name",
                &label,
                precise(name.holder_count),
            );
            families.add(
                "relatch_server_name_waiters",
                "Requests in line for a name",
                &label,
                precise(name.waiter_count),
            );
            families.add(
                "relatch_server_name_longest_hold_seconds",
                "How long the oldest hold of a name has been held",
                &label,
                seconds(longest_hold(name)),
            );
            families.add(
                "relatch_server_name_longest_wait_seconds",
                "How long the oldest request in line for a name has waited",
                &label,
                seconds(longest_wait(name)),
            );
        }
    }
}

struct Seen {
    seen: Vec<Inspection>,
    /// How many names there are.
    all: usize,
    /// How many of them were not looked at.
    left_out: usize,
    /// None if it can't be said.
    circles: Option<usize>,
    /// What does not answer, if a part of it does not.
    missing: Option<relatch::Error>,
}

fn longest_hold(name: &Inspection) -> Option<Duration> {
    name.holders.iter().map(|held| held.held_for).max()
}

fn longest_wait(name: &Inspection) -> Option<Duration> {
    name.waiters.iter().map(|waiting| waiting.waited).max()
}

fn seconds(time: Option<Duration>) -> f64 {
    time.unwrap_or_default().as_secs_f64()
}

fn number(count: usize) -> f64 {
    precise(count as u64)
}

#[allow(clippy::cast_precision_loss, reason = "nobody counts that far")]
fn precise(count: u64) -> f64 {
    count as f64
}

/// Gauges in the text format of Prometheus, version 0.0.4: a family's lines stand together.
#[derive(Default)]
struct Families(BTreeMap<&'static str, (&'static str, String)>);

impl Families {
    fn add(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: f64) {
        let (_, lines) = self.0.entry(name).or_insert_with(|| (help, String::new()));
        lines.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            let text = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(lines, "{before}{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            lines.push('}');
        }
        let _ = writeln!(lines, " {value}");
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, (help, lines)) in &self.0 {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{lines}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// How long an exporter is kept by somebody who says this, and then neither says nor reads anything.
    async fn kept(says: &str) -> Duration {
        let exporter = Arc::new(Exporter {
            relatch: Relatch::embedded(),
            pattern: "*".into(),
            interval: Duration::ZERO,
            names: 1,
            looks: 1,
            last: Mutex::default(),
            missing: Mutex::default(),
            refused: parking_lot::Mutex::default(),
        });
        // Less than any answer.
        let (mut theirs, ours) = tokio::io::duplex(64);
        let begun = tokio::time::Instant::now();
        let serving = tokio::spawn(exporter.serve(ours));
        theirs.write_all(says.as_bytes()).await.expect("it is read");
        serving.await.expect("it does not panic");
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_ask_or_does_not_take_the_answer_is_cut_off() {
        for says in ["", "GET /met", "GET /metrics HTTP/1.1\r\nHost: it\r\n"] {
            let kept = kept(says).await;
            assert!(kept <= HEADERS + Duration::from_secs(1), "{says:?} {kept:?}");
        }
        let request = "GET /metrics HTTP/1.1\r\nHost: it\r\n\r\n";
        assert_eq!(kept(request).await.as_secs(), ANSWERED.as_secs());
        let body = "POST /metrics HTTP/1.1\r\nHost: it\r\nContent-Length: 1000\r\n\r\nno more";
        assert!(kept(body).await <= ANSWERED + Duration::from_secs(1));
    }
}
