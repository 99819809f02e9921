//! What a client counts, by a recorder of the test's own: it is the process', so this test is alone in its program.
#![cfg(feature = "metrics")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use relatch::{Embedded, Relatch};
use support::{BOUND, eventually_async};

#[test]
fn numbers_count_acquisitions_waits_holds_renewals_and_losses() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().expect("it is the only one");
    let clock = relatch::Clock::manual();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // What the recorder has: by name and labels. Counters since the last time.
    let mut described = BTreeMap::new();
    let mut all: BTreeMap<String, f64> = BTreeMap::new();
    let mut look = move || {
        for (key, unit, description, value) in snapshotter.snapshot().into_vec() {
            let key = key.key();
            let labels: Vec<String> = key
                .labels()
                .map(|label| format!("{}={}", label.key(), label.value()))
                .collect();
            let name = format!("{}{{{}}}", key.name(), labels.join(","));
            described.insert(key.name().to_owned(), (unit, description));
            match value {
                // Each since it was looked at last.
                DebugValue::Counter(count) => *all.entry(name).or_default() += count as f64,
                DebugValue::Gauge(value) => *all.entry(name).or_default() += value.into_inner(),
                DebugValue::Histogram(values) => *all.entry(name).or_default() += values.len() as f64,
            }
        }
        (all.clone(), described.clone())
    };
    runtime.block_on(async {
        let server = Embedded::with_clock(clock.clone());
        let relatch = Relatch::builder().embedded_in(&server).unwrap();
        let lock = relatch.rwlock("numbers").unwrap();
        let write = lock.write().await.unwrap();
        assert!(lock.try_write().await.unwrap().is_none());
        let reads = tokio::spawn({
            let lock = lock.clone();
            async move { lock.read().await.unwrap() }
        });
        eventually_async(BOUND, "it waits", async || {
            relatch.inspect("numbers").await.unwrap().waiter_count == 1
        })
        .await;
        let (now, _) = look();
        assert_eq!(now["relatch_acquisitions_total{mode=write,outcome=granted}"], 1.0);
        assert_eq!(now["relatch_acquisitions_total{mode=write,outcome=busy}"], 1.0);
        assert_eq!(now["relatch_waiters{}"], 1.0);
        assert_eq!(now["relatch_holds{mode=write}"], 1.0);
        assert_eq!(now["relatch_wait_seconds{mode=write}"], 1.0);
        // A third of a lease later the write hold is renewed.
        clock.advance(Duration::from_secs(11));
        support::eventually(BOUND, "it is renewed", || {
            look()
                .0
                .get("relatch_renewals_total{outcome=renewed}")
                .is_some_and(|n| *n >= 1.0)
        })
        .await;
        write.release().await.unwrap();
        let read = reads.await.unwrap();
        let (now, _) = look();
        assert_eq!(now["relatch_holds{mode=write}"], 0.0);
        assert_eq!(now["relatch_hold_seconds{mode=write}"], 1.0);
        assert_eq!(now["relatch_waiters{}"], 0.0);
        let revoking = tokio::spawn({
            let relatch = relatch.clone();
            async move { relatch.revoke("numbers").await }
        });
        support::eventually(BOUND, "it is revoked", || {
            clock.advance(Duration::from_millis(1));
            revoking.is_finished()
        })
        .await;
        drop(read);
        let (now, described) = look();
        assert_eq!(now["relatch_lost_total{cause=revoked}"], 1.0);
        assert_eq!(now["relatch_holds{mode=read}"], 0.0);
        for (name, (unit, description)) in described {
            assert!(description.is_some(), "{name} says what it is");
            assert_eq!(name.ends_with("_seconds"), unit.is_some(), "{name}");
        }
    });
}
