//! The cases. In each round every subject does the same in turn, the floor first, so that what else the machine does hits all of them.
//!
//! The invariant: nothing is silently missing. A subject that can't do a case, or fails at it, has in its cell why, and the others go on.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, sleep, timeout};

use crate::job::{Desertion, Drops, Job, Mode, Worker, now_ns};
use crate::judge;
use crate::results::{Results, median, percentile};
use crate::server::{Server, connect};
use crate::subject::{Session, Subject};

pub(crate) const PAIR: &str = "pair";
pub(crate) const THROUGHPUT: &str = "throughput";
pub(crate) const HANDOFF: &str = "handoff";
pub(crate) const WAITERS: &str = "waiters";
pub(crate) const WAITS: &str = "waits";
pub(crate) const STARVING: &str = "starving";
pub(crate) const READERS: &str = "readers";
pub(crate) const DROPS: &str = "drops";
pub(crate) const OVERLAPS: &str = "overlaps";

/// In the order of the tables; `overlaps` is judged from what the others noted, so it is the last.
pub(crate) const CASES: [&str; 9] = [
    PAIR, HANDOFF, WAITERS, WAITS, STARVING, READERS, THROUGHPUT, DROPS, OVERLAPS,
];

/// No subject takes so long over one case in one round.
const BOUND: Duration = Duration::from_secs(100);

const NO_READS: &str = "it has no read mode";
const NOT_FOR_FLOOR: &str = "the floor excludes nobody";
const LATE_GRACE: Duration = Duration::from_secs(1);

/// How much of it all.
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) pair_ms: u64,
    pub(crate) throughput_ms: u64,
    pub(crate) tasks: &'static [u32],
    pub(crate) exchanges: usize,
    pub(crate) waiters: &'static [u32],
    pub(crate) waits_ms: u64,
    pub(crate) starving_ms: u64,
    pub(crate) readers: &'static [u32],
    pub(crate) drops: usize,
}

impl Plan {
    pub(crate) fn new(quick: bool, rounds: Option<usize>) -> Self {
        if quick {
            Self {
                rounds: rounds.unwrap_or(1),
                pair_ms: 200,
                throughput_ms: 300,
                tasks: &[1, 64],
                exchanges: 4,
                waiters: &[1, 10],
                waits_ms: 1000,
                starving_ms: 1000,
                readers: &[1, 100],
                drops: 60,
            }
        } else {
            Self {
                rounds: rounds.unwrap_or(3),
                pair_ms: 700,
                throughput_ms: 1000,
                tasks: &[1, 16, 64, 256],
                exchanges: 20,
                waiters: &[1, 10, 100],
                waits_ms: 3000,
                starving_ms: 3000,
                readers: &[1, 100, 1000, 10_000],
                drops: 60,
            }
        }
    }
}

pub(crate) struct Run<'a> {
    pub(crate) server: &'a Server,
    pub(crate) subjects: &'a [Subject],
    pub(crate) plan: Plan,
    pub(crate) results: Results,
    /// Numbers the names: none is used twice.
    names: u64,
}

impl<'a> Run<'a> {
    pub(crate) fn new(server: &'a Server, subjects: &'a [Subject], plan: Plan) -> Self {
        Self {
            server,
            subjects,
            plan,
            results: Results::default(),
            names: 0,
        }
    }

    pub(crate) async fn run(&mut self, cases: &[&'static str]) -> anyhow::Result<()> {
        for case in CASES.into_iter().filter(|case| cases.contains(case)) {
            for round in 0..self.plan.rounds {
                for (number, subject) in self.subjects.iter().enumerate() {
                    eprintln!(
                        "{case}, round {} of {}: {}",
                        round + 1,
                        self.plan.rounds,
                        subject.name
                    );
                    let before = self.results.columns.len();
                    let measured = timeout(BOUND, self.measure(case, number, subject)).await;
                    let measured = measured.map_err(|_| anyhow::anyhow!("it took longer than {BOUND:?}"));
                    if let Err(why) = measured.and_then(|measured| measured) {
                        eprintln!("  {}: {case}: {why:#}", subject.name);
                        let (from, all) = (before, self.results.columns.len());
                        let of_case = self.results.of(case);
                        let columns: Vec<usize> = of_case.into_iter().chain(from..all).collect();
                        self.results.missing_all(&columns, number, &format!("{why:#}"));
                    }
                    self.server.flush().await?;
                }
            }
        }
        Ok(())
    }

    async fn measure(&mut self, case: &str, number: usize, subject: &Subject) -> anyhow::Result<()> {
        match case {
            PAIR => self.pair(number, subject).await,
            THROUGHPUT => self.throughput(number, subject).await,
            HANDOFF if subject.is_floor() => self.bare_handoff(number).await,
            HANDOFF => self.handoff(number, subject).await,
            WAITERS => self.waiters(number, subject).await,
            WAITS => self.waits(number, subject).await,
            STARVING => self.starving(number, subject).await,
            READERS => self.readers(number, subject).await,
            DROPS => self.drops(number, subject).await,
            _ => self.overlaps(number, subject).await,
        }
    }

    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}-{}", self.names)
    }

    fn overlapped(&mut self, subject: usize, job: &Job, turns: &[crate::job::Turn]) {
        let seen = self.results.adding(OVERLAPS, "turns looked at");
        let overlaps = self.results.adding(OVERLAPS, "overlaps among them");
        self.results.note(seen, subject, turns.len() as f64);
        self.results
            .note(overlaps, subject, judge::overlaps(job, turns) as f64);
    }

    /// One task, nobody in the way.
    async fn pair(&mut self, number: usize, subject: &Subject) -> anyhow::Result<()> {
        let session = subject.open(&self.server.url, 1).await?;
        for mode in [Mode::Write, Mode::Read] {
            let word = if mode == Mode::Write { "write" } else { "read" };
            let columns = [
                ("", "µs"),
                (", server", "µs"),
                (", scripts", "µs"),
                (", commands", ""),
            ]
            .map(|(what, unit)| self.results.column(PAIR, format!("{word} pair{what}"), unit));
            if mode == Mode::Read && !subject.reads {
                self.results.missing_all(&columns, number, NO_READS);
                continue;
            }
            let name = self.name("pair");
            let mut job = Job::new(vec![Worker::new(0, &name, mode)]);
            // What is compiled as it runs is compiled now, and scripts are loaded.
            job.for_ms = self.plan.pair_ms;
            session.run(&job).await?;
            let looking = self.server.looking().await?;
            let before = self.server.spent().await?;
            let turns = session.run(&job).await?;
            let spent = self.server.spent().await?.since(before).since(looking);
            let took: Vec<f64> = turns
                .iter()
                .map(|turn| (turn.left - turn.asked) as f64 / 1e3)
                .collect();
            let count = turns.len() as f64;
            let [cpu, scripts, commands] =
                [spent.cpu_us, spent.script_us, spent.commands].map(|sum| sum / count);
            let values = [median(&took), cpu, scripts, commands];
            for (column, value) in columns.into_iter().zip(values) {
                self.results.note(column, number, value);
            }
        }
        session.close().await
    }

    /// One client, tasks on names of their own.
    async fn throughput(&mut self, number: usize, subject: &Subject) -> anyhow::Result<()> {
        let session = subject.open(&self.server.url, 1).await?;
        for tasks in self.plan.tasks {
            let what = format!("{tasks} task{}", if *tasks == 1 { "" } else { "s" });
            let column = self.results.point(THROUGHPUT, what, "pairs/s", *tasks);
            let workers = (0..*tasks).map(|_| Worker::new(0, &self.name("own"), Mode::Write));
            let mut job = Job::new(workers.collect());
            job.for_ms = self.plan.throughput_ms / 4;
            session.run(&job).await?;
            job.for_ms = self.plan.throughput_ms;
            let turns = session.run(&job).await?;
            let rate = turns.len() as f64 / judge::lasted(&turns);
            self.results.note(column, number, rate);
        }
        session.close().await
    }

    /// One holds, the other waits; at a random time the one leaves.
    async fn handoff(&mut self, number: usize, subject: &Subject) -> anyhow::Result<()> {
        let session = subject.open(&self.server.url, 2).await?;
        let mut took = Vec::new();
        // Warm, as for a pair.
        for exchange in 0..self.plan.exchanges + 2 {
            let name = self.name("handed");
            let workers = [0, 1].map(|client| Worker::new(client, &name, Mode::Write));
            let mut job = Job::new(workers.into());
            job.turns = 1;
            // Who polls is met at any moment between two polls.
            job.settle_us = Some(fastrand::u64(30_000..130_000));
            let turns = session.run(&job).await?;
            self.overlapped(number, &job, &turns);
            if exchange >= 2 {
                took.extend(judge::handoffs(&turns));
            }
        }
        anyhow::ensure!(!took.is_empty(), "nothing was handed over");
        self.handed(number, &took);
        session.close().await
    }

    fn handed(&mut self, number: usize, took: &[f64]) {
        let half = self.results.column(HANDOFF, "median".into(), "ms");
        let late = self.results.column(HANDOFF, "9 of 10 are quicker".into(), "ms");
        let longest = self.results.column(HANDOFF, "longest".into(), "ms");
        self.results.note(half, number, median(took));
        self.results.note(late, number, percentile(took, 0.9));
        self.results
            .note(longest, number, took.iter().copied().fold(0.0, f64::max));
    }

    /// A script that writes one field and publishes, from its call to the running of who waits for the message.
    async fn bare_handoff(&mut self, number: usize) -> anyhow::Result<()> {
        const SCRIPT: &str =
            "redis.call('HSET', KEYS[1], 'owner', ARGV[1]) redis.call('PUBLISH', ARGV[2], ARGV[1]) return 1";
        let (caller, _) = connect(&self.server.url).await?;
        let (mut hearer, mut pushed) = connect(&self.server.url).await?;
        let channel = self.name("bare");
        hearer.subscribe(&channel).await?;
        let script = self.server.script(SCRIPT).await?;
        let mut took = Vec::new();
        for exchange in 0..self.plan.exchanges + 2 {
            // As idle before as in the handoffs that it is compared with.
            sleep(Duration::from_micros(fastrand::u64(5_000..15_000))).await;
            while pushed.try_recv().is_ok() {}
            let mut call = script.clone();
            call.arg(1).arg("bare").arg(exchange).arg(&channel);
            let mut caller = caller.clone();
            let called = now_ns();
            let calling = tokio::spawn(async move { call.query_async::<i64>(&mut caller).await });
            let heard = timeout(BOUND, pushed.recv()).await?;
            let running = now_ns();
            heard.context("the connection is gone")?;
            calling.await??;
            if exchange >= 2 {
                took.push(judge::millis(running - called));
            }
        }
        self.handed(number, &took);
        Ok(())
    }

    /// A line that gets shorter: all ask while one holds.
    async fn waiters(&mut self, number: usize, subject: &Subject) -> anyhow::Result<()> {
        let mut table = Vec::new();
        for (what, unit) in [("time", "ms"), ("commands", ""), ("server", "µs")] {
            let column = |waiters: &u32| {
                let what = format!("{what}, {waiters} in line");
                self.results.point(WAITERS, what, unit, *waiters)
            };
            table.push(self.plan.waiters.iter().map(column).collect::<Vec<_>>());
        }
        if subject.is_floor() {
            self.results.missing_all(&table.concat(), number, NOT_FOR_FLOOR);
            return Ok(());
        }
        for (at, waiters) in self.plan.waiters.iter().enumerate() {
            let columns: Vec<usize> = table.iter().filter_map(|of| of.get(at).copied()).collect();
            const CLIENTS: usize = 4;
            let session = subject.open(&self.server.url, CLIENTS).await?;
            let name = self.name("line");
            let workers =
                (0..=*waiters as usize).map(|worker| Worker::new(worker % CLIENTS, &name, Mode::Write));
            let mut job = Job::new(workers.collect());
            job.turns = 1;
            job.settle_us = Some(fastrand::u64(150_000..250_000));
            // Scripts are loaded, and pools filled.
            let mut warm = job.clone();
            warm.workers.truncate(CLIENTS + 1);
            warm.settle_us = Some(20_000);
            session.run(&warm).await?;
            let looking = self.server.looking().await?;
            let before = self.server.spent().await?;
            let turns = session.run(&job).await?;
            let spent = self.server.spent().await?.since(before).since(looking);
            self.overlapped(number, &job, &turns);
            session.close().await?;
            let late = judge::in_vain(&turns);
            if late > 0 {
                let why = format!(
                    "{late} of {waiters} had not got in after {} s",
                    job.wait_ms / 1000
                );
                self.results.missing_all(&columns, number, &why);
                continue;
            }
            let first = turns.first().map_or(0, |turn| turn.leaving);
            let last = turns.last().map_or(0, |turn| turn.granted);
            let count = f64::from(*waiters);
            let values = [
                judge::millis(last.saturating_sub(first)) / count,
                spent.commands / (count + 1.0),
                spent.cpu_us / (count + 1.0),
            ];
            for (column, value) in columns.into_iter().zip(values) {
                self.results.note(column, number, value);
            }
        }
        Ok(())
    }

    /// 16 clients that want to write all the time.
    async fn waits(&mut self, number: usize, subject: &Subject) -> anyhow::Result<()> {
        const CLIENTS: usize = 16;
        let columns = [
            ("longest wait", "ms"),
            ("mean wait", "ms"),
            ("longest to mean", "×"),
            ("turns", "/s"),
            ("commands a turn", ""),
        ]
        .map(|(what, unit)| self.results.column(WAITS, what.into(), unit));
        if subject.is_floor() {
            self.results.missing_all(&columns, number, NOT_FOR_FLOOR);
            return Ok(());
        }
        let session = subject.open(&self.server.url, CLIENTS).await?;
        let name = self.name("wanted");
        let mut job = Job::new(
            (0..CLIENTS)
                .map(|client| Worker {
                    hold_us: 1000,
                    ..Worker::new(client, &name, Mode::Write)
                })
                .collect(),
        );
        job.for_ms = 300;
        session.run(&job).await?;
        job.for_ms = self.plan.waits_ms;
        let looking = self.server.looking().await?;
        let before = self.server.spent().await?;
        let turns = session.run(&job).await?;
        let spent = self.server.spent().await?.since(before).since(looking);
        session.close().await?;
        self.overlapped(number, &job, &turns);
        let waits = judge::waits(&turns);
        let longest = waits.iter().copied().fold(0.0, f64::max);
        let mean = waits.iter().sum::<f64>() / waits.len() as f64;
        let done = (turns.len() - judge::in_vain(&turns)) as f64;
        let values = [
            longest,
            mean,
            longest / mean,
            done / judge::lasted(&turns),
            spent.commands / done,
        ];
        for (column, value) in columns.into_iter().zip(values) {
            self.results.note(column, number, value);
        }
        Ok(())
    }

    /// A writer among readers that overlap.
    async fn starving(&mut self, number: usize, subject: &Subject) -> anyhow::Result<()> {
        const AMONG: u64 = 8;
        const STAY_US: u64 = 20_000;
        let longest = self
            .results
            .column(STARVING, "the writer's longest wait".into(), "ms");
        let entered = self.results.adding(STARVING, "writes");
        let in_vain = self.results.adding(STARVING, "given up");
        let why_not = if subject.is_floor() {
            Some(NOT_FOR_FLOOR)
        } else {
            (!subject.reads).then_some(NO_READS)
        };
        if let Some(why) = why_not {
            self.results
                .missing_all(&[longest, entered, in_vain], number, why);
            return Ok(());
        }
        let session = subject.open(&self.server.url, 2).await?;
        let name = self.name("read");
        let mut workers: Vec<Worker> = (0..AMONG)
            .map(|reader| Worker {
                start_us: STAY_US * reader / AMONG,
                hold_us: STAY_US,
                ..Worker::new(0, &name, Mode::Read)
            })
            .collect();
        workers.push(Worker {
            start_us: STAY_US * 2,
            rest_us: STAY_US * 2,
            ..Worker::new(1, &name, Mode::Write)
        });
        let mut job = Job::new(workers);
        job.for_ms = self.plan.starving_ms;
        // The readers go on for longer than a writer waits.
        job.wait_ms = self.plan.starving_ms * 9 / 10;
        let turns = session.run(&job).await?;
        session.close().await?;
        self.overlapped(number, &job, &turns);
        let writes = || turns.iter().filter(|turn| turn.worker as u64 == AMONG);
        let late = judge::in_vain(writes());
        self.results.note(
            longest,
            number,
            judge::waits(writes()).into_iter().fold(0.0, f64::max),
        );
        self.results
            .note(entered, number, (writes().count() - late) as f64);
        self.results.note(in_vain, number, late as f64);
        Ok(())
    }

    /// A read pair while many read.
    async fn readers(&mut self, number: usize, subject: &Subject) -> anyhow::Result<()> {
        for readers in self.plan.readers {
            let among = if *readers == 1 {
                "1 reader".into()
            } else {
                format!("{} readers", crate::results::grouped(f64::from(*readers)))
            };
            let server = self
                .results
                .point(READERS, format!("server, {among}"), "µs", *readers);
            if !subject.reads {
                self.results.missing(server, number, NO_READS);
                continue;
            }
            let mut session = subject.open(&self.server.url, 2).await?;
            let name = self.name("crowd");
            session.crowd(&name, *readers as usize).await?;
            let mut job = Job::new(vec![Worker::new(1, &name, Mode::Read)]);
            job.for_ms = self.plan.pair_ms / 4;
            session.run(&job).await?;
            job.for_ms = self.plan.pair_ms;
            let looking = self.server.looking().await?;
            let before = self.server.spent().await?;
            let turns = session.run(&job).await?;
            let spent = self.server.spent().await?.since(before).since(looking);
            self.results
                .note(server, number, spent.cpu_us / turns.len() as f64);
            // To give all of it back may take a subject minutes.
            self.server.flush().await?;
            session.close().await?;
        }
        Ok(())
    }

    /// Acquisitions that are dropped on their way, and a line that is.
    async fn drops(&mut self, number: usize, subject: &Subject) -> anyhow::Result<()> {
        let dropped = self.results.adding(DROPS, "dropped");
        let orphans = self.results.adding(DROPS, "still held 1 s later");
        let newcomer = self
            .results
            .column(DROPS, "after a line was dropped, the next is in".into(), "ms");
        if subject.is_floor() {
            self.results
                .missing_all(&[dropped, orphans, newcomer], number, NOT_FOR_FLOOR);
            return Ok(());
        }
        let session = subject.open(&self.server.url, 3).await?;
        // How long there is something in flight, from what a pair takes here and now.
        let name = self.name("paced");
        let mut pace = Job::new(vec![Worker::new(0, &name, Mode::Write)]);
        pace.turns = 300;
        let turns = session.run(&pace).await?;
        let took: Vec<f64> = turns
            .iter()
            .map(|turn| (turn.granted - turn.asked) as f64 / 1e3)
            .collect();
        let drops = Drops {
            name: self.name("dropped-"),
            mode: Mode::Write,
            count: self.plan.drops,
            within_us: (median(&took) * 1.2) as u64,
        };
        let names = session.drops(&drops).await?.names;
        // Whatever is given back in the background has been by then; the leases are thirty times as long.
        sleep(LATE_GRACE).await;
        let mut held = 0;
        let mut probes = Job::new(
            names
                .iter()
                .map(|at| Worker::new(1, &format!("{}{at}", drops.name), Mode::Write))
                .collect(),
        );
        probes.turns = 1;
        probes.wait_ms = 1000;
        if !names.is_empty() {
            held = judge::in_vain(&session.run(&probes).await?);
        }
        self.results.note(dropped, number, names.len() as f64);
        self.results.note(orphans, number, held as f64);

        let desertion = Desertion {
            name: self.name("deserted"),
            waiters: self.plan.drops,
            mode: if subject.reads { Mode::Read } else { Mode::Write },
            wait_ms: 5000,
        };
        match session.desert(&desertion).await? {
            Some(took) => self.results.note(newcomer, number, took),
            None => self.results.note(newcomer, number, desertion.wait_ms as f64),
        }
        session.close().await
    }

    /// Tasks that share a handle; the other overlaps come from the other cases.
    async fn overlaps(&mut self, number: usize, subject: &Subject) -> anyhow::Result<()> {
        let shared = self.results.adding(OVERLAPS, "turns with one handle for 8 tasks");
        let overlaps = self.results.adding(OVERLAPS, "overlaps among those");
        if subject.is_floor() {
            self.results
                .missing_all(&self.results.of(OVERLAPS), number, NOT_FOR_FLOOR);
            return Ok(());
        }
        let session: Session = subject.open(&self.server.url, 1).await?;
        let name = self.name("shared");
        let worker = Worker {
            hold_us: 1000,
            ..Worker::new(0, &name, Mode::Write)
        };
        let mut job = Job::new(vec![worker; 8]);
        job.for_ms = self.plan.waits_ms / 3;
        job.shared = true;
        let begun = Instant::now();
        let turns = session.run(&job).await?;
        session.close().await?;
        anyhow::ensure!(begun.elapsed() < BOUND, "it took too long");
        self.results.note(shared, number, turns.len() as f64);
        self.results
            .note(overlaps, number, judge::overlaps(&job, &turns) as f64);
        Ok(())
    }
}
