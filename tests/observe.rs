//! What operators see of a client: spans, events and warnings. By a subscriber of the tests' own.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use relatch::{Embedded, Owner, Relatch};
use support::{BOUND, eventually_async};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

/// A span or an event, with all that was recorded.
#[derive(Clone, Debug, Default)]
struct Seen {
    what: String,
    fields: BTreeMap<String, String>,
    parent: Option<String>,
    closed: bool,
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.fields.insert(field.name().into(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name().into(), value.into());
    }
}

impl Seen {
    fn get(&self, field: &str) -> &str {
        self.fields.get(field).map_or("", String::as_str)
    }

    fn number(&self, field: &str) -> f64 {
        self.get(field).parse().unwrap_or(f64::NAN)
    }
}

/// What all tests of this program have emitted. Their locks have different names.
#[derive(Default)]
struct Log {
    spans: BTreeMap<u64, Seen>,
    events: Vec<Seen>,
}

static LOG: LazyLock<Arc<Mutex<Log>>> = LazyLock::new(|| {
    let log = Arc::<Mutex<Log>>::default();
    let subscriber = tracing_subscriber::registry().with(Recorder(log.clone()));
    tracing::subscriber::set_global_default(subscriber).expect("it is the only one");
    log
});

struct Recorder(Arc<Mutex<Log>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let mut seen = Seen {
            what: span.name().into(),
            parent: span.parent().map(|parent| parent.name().into()),
            ..Seen::default()
        };
        attributes.record(&mut seen);
        self.0.lock().unwrap().spans.insert(id.into_u64(), seen);
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, _: Context<'_, S>) {
        if let Some(seen) = self.0.lock().unwrap().spans.get_mut(&id.into_u64()) {
            record.record(seen);
        }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut seen = Seen {
            what: event.metadata().level().to_string(),
            ..Seen::default()
        };
        event.record(&mut seen);
        self.0.lock().unwrap().events.push(seen);
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Ids are used again.
        if let Some(mut seen) = log.spans.remove(&id.into_u64()) {
            seen.closed = true;
            log.events.push(seen);
        }
    }
}

/// The spans that have closed, and the events, about this name.
fn seen(name: &str, what: &str) -> Vec<Seen> {
    let log = LOG.lock().unwrap();
    log.events
        .iter()
        .filter(|seen| seen.what == what && seen.get("name") == name)
        .cloned()
        .collect()
}

#[track_caller]
fn one(name: &str, what: &str) -> Seen {
    let all = seen(name, what);
    assert_eq!(all.len(), 1, "{what} of {name}: {all:?}");
    all[0].clone()
}

#[tokio::test]
async fn an_acquisition_a_hold_and_a_release_are_a_span_each() {
    LazyLock::force(&LOG);
    let name = "spans";
    let relatch = Relatch::embedded();
    let lock = relatch.rwlock(name).unwrap();
    let owner = Owner::new();
    let first = lock.write().await.unwrap();
    let (waiter, of) = (lock.clone(), owner.clone());
    use tracing::Instrument as _;
    let waiting = tokio::spawn(
        async move { waiter.read().owner(&of).label("a report").await }
            .instrument(tracing::info_span!("handler")),
    );
    support::eventually(BOUND, "it waits", || !waiting.is_finished()).await;
    eventually_async(BOUND, "it is in line", async || {
        relatch.inspect(name).await.unwrap().waiter_count == 1
    })
    .await;
    let fence = first.fence();
    first.release().await.unwrap();
    let second = waiting.await.unwrap().unwrap();

    let acquires = seen(name, "relatch.acquire");
    let [one_, two] = &acquires[..] else {
        panic!("{acquires:?}")
    };
    assert_eq!((one_.get("mode"), one_.get("outcome")), ("write", "granted"));
    assert_eq!(one_.get("owner").len(), 36, "{one_:?}");
    assert_eq!(one_.get("fence"), fence.to_string());
    assert_eq!(
        (two.get("mode"), two.get("owner"), two.get("label")),
        ("read", owner.to_string().as_str(), "a report")
    );
    assert_eq!(two.parent.as_deref(), Some("handler"));
    assert!(two.number("wait_ms") > 0.0 && two.closed, "{two:?}");

    let hold = one(name, "relatch.hold");
    assert_eq!((hold.get("mode"), hold.get("end")), ("write", "released"));
    assert!(hold.number("held_ms") >= 0.0 && hold.number("wait_ms") >= 0.0);
    assert_eq!(hold.get("fence"), fence.to_string());
    let release = one(name, "relatch.release");
    assert_eq!(
        (
            release.get("mode"),
            release.get("outcome"),
            release.get("background")
        ),
        ("write", "released", "false")
    );

    drop(second);
    let holds = seen(name, "relatch.hold");
    assert_eq!(holds.len(), 2);
    assert_eq!((holds[1].get("mode"), holds[1].get("depth")), ("read", "1"));
    assert_eq!(
        holds[1].parent.as_deref(),
        Some("handler"),
        "not the acquisition, which is over"
    );
}

#[tokio::test]
async fn what_a_hold_turns_into_is_another_span_and_what_is_lost_says_how() {
    LazyLock::force(&LOG);
    let name = "turns";
    let relatch = Relatch::embedded();
    let lock = relatch.rwlock(name).unwrap();
    let read = lock.write().await.unwrap().downgrade().await.unwrap();
    let ends = |spans: &[Seen]| -> Vec<(String, String)> {
        spans
            .iter()
            .map(|span| (span.get("mode").into(), span.get("end").into()))
            .collect()
    };
    assert_eq!(
        ends(&seen(name, "relatch.hold")),
        [("write".into(), "turned".into())]
    );
    relatch.revoke(name).await.unwrap();
    assert!(!read.is_held());
    assert_eq!(
        ends(&seen(name, "relatch.hold"))[1],
        ("read".into(), "revoked".into())
    );
    let warning = one(name, "WARN");
    assert_eq!(warning.get("message"), "a hold is lost");
    assert_eq!(warning.get("owner"), read.owner().to_string());
    assert!(warning.get("cause").contains("revoked"));
    drop(read);
    assert_eq!(seen(name, "relatch.hold").len(), 2, "it ended once");
}

#[tokio::test]
async fn an_acquisition_that_is_dropped_or_finds_somebody_says_so() {
    LazyLock::force(&LOG);
    let name = "outcomes";
    let relatch = Relatch::embedded();
    let lock = relatch.rwlock(name).unwrap();
    let held = lock.write().await.unwrap();
    assert!(lock.try_read().await.unwrap().is_none());
    let dropped = tokio::time::timeout(Duration::from_millis(5), lock.read().into_future()).await;
    assert!(dropped.is_err());
    lock.read().timeout(Duration::from_millis(5)).await.unwrap_err();
    let outcomes: Vec<String> = seen(name, "relatch.acquire")
        .iter()
        .map(|span| span.get("outcome").to_owned())
        .collect();
    assert_eq!(outcomes, ["granted", "busy", "cancelled", "timeout"]);
    drop(held);
}

#[tokio::test]
async fn a_timeout_says_who_held_and_who_was_ahead_as_an_error_and_as_an_event() {
    LazyLock::force(&LOG);
    let name = "blame";
    let relatch = Relatch::embedded();
    let lock = relatch.rwlock(name).unwrap();
    let (holder, next, asking) = (Owner::new(), Owner::new(), Owner::new());
    let _held = lock.write().owner(&holder).label("nightly import").await.unwrap();
    let (waiter, of) = (lock.clone(), next.clone());
    tokio::spawn(async move { waiter.write().owner(&of).label("the next").await.map(drop) });
    eventually_async(BOUND, "it is in line, and said who it is", async || {
        let seen = relatch.inspect(name).await.unwrap();
        seen.waiters
            .first()
            .is_some_and(|waiting| waiting.client.is_some())
    })
    .await;
    let error = lock
        .write()
        .owner(&asking)
        .timeout(Duration::from_millis(20))
        .await
        .unwrap_err();
    let blame = error.blame().unwrap();
    assert_eq!((blame.holder_count, blame.ahead), (1, 1));
    assert_eq!(blame.holders[0].owner, holder);
    let [ahead] = &blame.ahead_in_line[..] else {
        panic!("{blame:?}")
    };
    assert_eq!((&ahead.owner, ahead.label.as_deref()), (&next, Some("the next")));
    let me = blame.holders[0].client.as_ref().unwrap();
    let text = error.to_string();
    for word in [
        "held as write by owner",
        &holder.to_string(),
        &me.host,
        &me.program,
        &format!("(pid {})", std::process::id()),
        "\"nightly import\"",
        "1 ahead in line: write by owner",
        &next.to_string(),
        "\"the next\"",
    ] {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }

    let event = one(name, "INFO");
    let is = |field: &str, value: &str| assert_eq!(event.get(field), value, "{field} in {event:?}");
    is("mode", "write");
    is("owner", &asking.to_string());
    is("holders", "1");
    is("ahead", "1");
    is("holder.owner", &holder.to_string());
    is("holder.mode", "write");
    is("holder.host", &me.host);
    is("holder.pid", &std::process::id().to_string());
    is("holder.program", &me.program);
    is("holder.label", "nightly import");
    is("next.owner", &next.to_string());
    is("next.label", "the next");
    assert!(event.number("holder.held_ms") >= 0.0 && event.number("wait_ms") >= 20.0);
    assert!(event.get("message").contains("held as write"), "{event:?}");
}

/// With a clock that the test moves to the first poll: that far an acquisition has waited for a while.
async fn warned(name: &str, owners: [Option<&Owner>; 2], apart: bool) -> Vec<Seen> {
    LazyLock::force(&LOG);
    let clock = relatch::Clock::manual();
    let server = Embedded::with_clock(clock.clone());
    let relatch = Relatch::builder().embedded_in(&server).unwrap();
    let lock = relatch.rwlock(name).unwrap();
    let acquire = |owner: Option<&Owner>| match owner {
        Some(owner) => lock.write().owner(owner),
        None => lock.write(),
    };
    let held = acquire(owners[0]).label("outer").await.unwrap();
    let wait = acquire(owners[1]).into_future();
    let mut wait = std::pin::pin!(async {
        match apart {
            true => tokio::spawn(wait).await.unwrap(),
            false => wait.await,
        }
    });
    for _ in 0..3 {
        // Polled by this task until it is in line, and then on until the poll after a third of a claim.
        tokio::select! {
            biased;
            _ = &mut wait => panic!("somebody holds"),
            () = eventually_async(BOUND, "in line", async || {
                relatch.inspect(name).await.unwrap().waiter_count == 1
            }) => {}
        }
        clock.advance(Duration::from_secs(2));
    }
    // Whatever was to be warned of has been by the time that the wait is served.
    held.release().await.unwrap();
    wait.await.unwrap().release().await.unwrap();
    seen(name, "WARN")
}

#[tokio::test]
async fn a_task_that_waits_for_itself_is_pointed_to_the_scope_once() {
    let (ann, ben) = (Owner::new(), Owner::new());
    let warnings = warned("itself", [Some(&ann), Some(&ben)], false).await;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let warning = &warnings[0];
    assert!(warning.get("message").contains("Owner::scope"), "{warning:?}");
    assert_eq!(
        (warning.get("owner"), warning.get("holder.owner")),
        (ben.to_string().as_str(), ann.to_string().as_str())
    );
    assert_eq!(
        (warning.get("holder.label"), warning.get("holder.mode")),
        ("outer", "write")
    );
    // Without owners each acquisition has one of its own: the mistake that is made most.
    assert_eq!(warned("itself, nobody", [None, None], false).await.len(), 1);
}

#[tokio::test]
async fn a_task_that_waits_for_another_is_not_warned() {
    let (ann, ben) = (Owner::new(), Owner::new());
    assert_eq!(warned("another", [Some(&ann), Some(&ben)], true).await.len(), 0);
}

#[tokio::test]
async fn a_task_that_waits_for_itself_is_told_at_its_timeout_too() {
    LazyLock::force(&LOG);
    let name = "itself, briefly";
    let lock = Relatch::embedded().rwlock(name).unwrap();
    let task = tokio::spawn(async move {
        let _held = lock.read().await.unwrap();
        lock.write().timeout(Duration::from_millis(10)).await.unwrap_err()
    });
    assert!(task.await.unwrap().is_timeout());
    assert!(one(name, "WARN").get("message").contains("Owner::scope"));
}
