//! What operators see of a client: spans and events by `tracing`, numbers by `metrics` (feature `metrics`).
//!
//! The only place that knows how either is spelt; `docs/observability.md` is the table of it. A library emits, and never installs: where nobody
//! listens, a span is a comparison with a constant, and without the feature a number is nothing at all. Names, owners and labels of locks are
//! fields of spans; as labels of numbers they would make a series each, so those only have modes and outcomes.
//!
//! Spans are never entered across an await: an acquisition's is around its future, a hold's is opened at the grant and closed when the hold ends.

use std::pin::Pin;
use std::thread::ThreadId;
use std::time::Duration;

use tracing::Span;
use tracing::field::{Empty, display};

use crate::clock::{Clock, Moment};
use crate::error::{Error, ErrorKind, LostCause};
use crate::owner::Owner;
use crate::protocol::{Call, Mode, Operation};
use crate::watchdog::Held;

// -- numbers ----------------------------------------------------------------------------------------------------

/// With the mode as a label. Labels that are literals are made by the compiler.
#[cfg(feature = "metrics")]
macro_rules! by_mode {
    ($kind:ident, $name:literal, $mode:expr $(, $label:literal => $value:literal)*) => {
        match $mode {
            Mode::Read => metrics::$kind!($name, "mode" => "read" $(, $label => $value)*),
            Mode::Upgradable => metrics::$kind!($name, "mode" => "upgradable" $(, $label => $value)*),
            Mode::Write => metrics::$kind!($name, "mode" => "write" $(, $label => $value)*),
        }
    };
}

/// Says to the recorder what the numbers mean. Once per client, as it is made: a recorder that is installed later goes without.
#[cfg(feature = "metrics")]
pub(crate) fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!(
        "relatch_acquisitions_total",
        "Acquisitions that ended, by mode and outcome"
    );
    describe_histogram!(
        "relatch_wait_seconds",
        Unit::Seconds,
        "From asking for a hold to having it"
    );
    describe_histogram!(
        "relatch_hold_seconds",
        Unit::Seconds,
        "From having a hold to its end"
    );
    describe_gauge!("relatch_waiters", "Acquisitions of this process that are in line");
    describe_gauge!("relatch_holds", "Holds that this process has");
    describe_counter!(
        "relatch_renewals_total",
        "Leases that were to be renewed, by outcome"
    );
    describe_counter!("relatch_lost_total", "Holds that were lost, by cause");
    describe_counter!(
        "relatch_reconnects_total",
        "Links made anew; in a cluster, how often something came to be heard over another link"
    );
}
#[cfg(not(feature = "metrics"))]
pub(crate) fn describe() {}

/// What came of renewals.
#[derive(Clone, Copy)]
pub(crate) enum Renewals {
    Renewed,
    /// The server does not know the hold any more.
    Gone,
    /// The server says no.
    Refused,
    /// No answer; tried again.
    Unanswered,
}

pub(crate) fn renewals(what: Renewals, count: usize) {
    #[cfg(feature = "metrics")]
    match what {
        Renewals::Renewed => metrics::counter!("relatch_renewals_total", "outcome" => "renewed"),
        Renewals::Gone => metrics::counter!("relatch_renewals_total", "outcome" => "gone"),
        Renewals::Refused => metrics::counter!("relatch_renewals_total", "outcome" => "refused"),
        Renewals::Unanswered => metrics::counter!("relatch_renewals_total", "outcome" => "unanswered"),
    }
    .increment(count as u64);
    #[cfg(not(feature = "metrics"))]
    let _ = (what, count);
}

pub(crate) fn linked(generation: u64) {
    // The first link is no reconnect.
    #[cfg(feature = "metrics")]
    if generation > 1 {
        metrics::counter!("relatch_reconnects_total").increment(1);
    }
    #[cfg(not(feature = "metrics"))]
    let _ = generation;
}

/// A hold is lost. To be told before it is given back.
pub(crate) fn lost(held: &Held, cause: LostCause) {
    tracing::warn!(
        name = held.name.as_str(),
        owner = %held.owner(),
        fence = held.fence,
        label = label(&held.label),
        %cause,
        "a hold is lost"
    );
    #[cfg(feature = "metrics")]
    match cause {
        LostCause::Lapsed => metrics::counter!("relatch_lost_total", "cause" => "lapsed"),
        LostCause::Revoked => metrics::counter!("relatch_lost_total", "cause" => "revoked"),
        LostCause::Forgotten => metrics::counter!("relatch_lost_total", "cause" => "forgotten"),
        LostCause::MaxHold => metrics::counter!("relatch_lost_total", "cause" => "max_hold"),
        LostCause::Closed => metrics::counter!("relatch_lost_total", "cause" => "closed"),
    }
    .increment(1);
}

// -- an acquisition ---------------------------------------------------------------------------------------------

/// What came of an acquisition, in the words of the spans and of the numbers.
macro_rules! outcomes {
    ($($outcome:ident $word:literal)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Outcome {
            $($outcome,)*
        }

        impl Outcome {
            fn as_str(self) -> &'static str {
                match self {
                    $(Outcome::$outcome => $word,)*
                }
            }

            #[cfg(feature = "metrics")]
            fn count(self, mode: Mode) {
                match self {
                    $(Outcome::$outcome => {
                        by_mode!(counter, "relatch_acquisitions_total", mode, "outcome" => $word)
                    })*
                }
                .increment(1);
            }
        }
    };
}

outcomes! {
    Granted "granted"
    Busy "busy"
    Timeout "timeout"
    Refused "refused"
    Deadlock "deadlock"
    Unreachable "unreachable"
    Failed "failed"
    Cancelled "cancelled"
}

impl Outcome {
    fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Timeout { .. } => Outcome::Timeout,
            ErrorKind::Refused { .. } | ErrorKind::SelfLock { .. } => Outcome::Refused,
            ErrorKind::Deadlock { .. } => Outcome::Deadlock,
            ErrorKind::Unreachable(_) => Outcome::Unreachable,
            _ => Outcome::Failed,
        }
    }
}

/// An acquisition, as it is watched. One that is dropped was cancelled.
pub(crate) struct Acquiring<'a> {
    pub(crate) span: Span,
    clock: &'a Clock,
    name: &'a str,
    mode: Mode,
    begun: Moment,
    ended: bool,
}

impl<'a> Acquiring<'a> {
    pub(crate) fn new(clock: &'a Clock, name: &'a str, mode: Mode, begun: Moment, labelled: &str) -> Self {
        let span = tracing::debug_span!(
            "relatch.acquire",
            name,
            mode = mode.as_str(),
            owner = Empty,
            label = label(labelled),
            outcome = Empty,
            wait_ms = Empty,
            fence = Empty,
            depth = Empty,
        );
        Self {
            span,
            clock,
            name,
            mode,
            begun,
            ended: false,
        }
    }

    pub(crate) fn owner(&self, owner: &Owner) {
        if !self.span.is_disabled() {
            self.span.record("owner", display(owner));
        }
    }

    /// It holds. From here on the hold is watched; in the caller's span, as the acquisition is over before it.
    pub(crate) fn granted(mut self, held: &Held) {
        let wait = || held.granted.since(self.begun);
        if !self.span.is_disabled() {
            self.span.record("fence", held.fence);
            self.span.record("depth", held.depth());
        }
        #[cfg(feature = "metrics")]
        by_mode!(histogram, "relatch_wait_seconds", self.mode).record(wait());
        held.begin(Life::new(self.mode, held, wait));
        self.end(Outcome::Granted, || held.granted);
    }

    /// It is told by another.
    pub(crate) fn disregard(mut self) {
        self.ended = true;
    }

    pub(crate) fn busy(mut self) {
        self.end_now(Outcome::Busy);
    }

    pub(crate) fn failed(mut self, error: &Error, owner: Option<&Owner>) {
        if let ErrorKind::Timeout { blame, waited, .. } = error.kind() {
            let first = blame.holders.first();
            let client = first.and_then(|holder| holder.client.as_ref());
            let ahead = blame.ahead_in_line.first();
            let ahead_client = ahead.and_then(|waiting| waiting.client.as_ref());
            tracing::info!(
                name = self.name,
                mode = self.mode.as_str(),
                owner = owner.map(display),
                wait_ms = millis(*waited),
                holders = blame.holder_count,
                ahead = blame.ahead,
                holder.owner = first.map(|holder| display(&holder.owner)),
                holder.mode = first.map(|holder| holder.mode.as_str()),
                holder.held_ms = first.map(|holder| millis(holder.held_for)),
                holder.host = client.map(|client| client.host.as_str()),
                holder.pid = client.map(|client| client.pid),
                holder.program = client.map(|client| client.program.as_str()),
                holder.label = first.and_then(|holder| holder.label.as_deref()),
                next.owner = ahead.map(|waiting| display(&waiting.owner)),
                next.mode = ahead.map(|waiting| waiting.mode.as_str()),
                next.wait_ms = ahead.map(|waiting| millis(waiting.waited)),
                next.host = ahead_client.map(|client| client.host.as_str()),
                next.pid = ahead_client.map(|client| client.pid),
                next.program = ahead_client.map(|client| client.program.as_str()),
                next.label = ahead.and_then(|waiting| waiting.label.as_deref()),
                "a wait for a lock ran out{blame}"
            );
        }
        self.end_now(Outcome::of(error));
    }

    fn end_now(&mut self, outcome: Outcome) {
        let clock = self.clock;
        self.end(outcome, || clock.now());
    }

    /// Where nobody is told the clock is not asked, either.
    fn end(&mut self, outcome: Outcome, at: impl FnOnce() -> Moment) {
        self.ended = true;
        if !self.span.is_disabled() {
            self.span.record("outcome", outcome.as_str());
            self.span.record("wait_ms", millis(at().since(self.begun)));
        }
        #[cfg(feature = "metrics")]
        outcome.count(self.mode);
    }
}

impl Drop for Acquiring<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end_now(Outcome::Cancelled);
        }
    }
}

/// A future, in a span whenever it is polled. Where it stands: wrapped, it would be moved about.
pub(crate) fn within<F: Future>(span: &Span, mut future: Pin<&mut F>) -> impl Future<Output = F::Output> {
    std::future::poll_fn(move |cx| {
        let _inside = span.enter();
        future.as_mut().poll(cx)
    })
}

/// An acquisition that is in line, while this lives.
pub(crate) struct InLine(());

impl InLine {
    pub(crate) fn new() -> Self {
        #[cfg(feature = "metrics")]
        metrics::gauge!("relatch_waiters").increment(1);
        Self(())
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        #[cfg(feature = "metrics")]
        metrics::gauge!("relatch_waiters").decrement(1);
    }
}

// -- a hold -----------------------------------------------------------------------------------------------------

/// A hold from its grant to its end, in one mode.
#[derive(Debug)]
pub(crate) struct Life {
    /// Who waited for it: see [`Flow`].
    pub(crate) flow: Flow,
    pub(crate) mode: Mode,
    since: Moment,
    /// None where nobody listens: then a hold is no larger for it.
    span: Option<Box<Span>>,
}

/// How a hold ended, as its guard sees it.
#[derive(Clone, Copy)]
pub(crate) enum End {
    /// Given back.
    Released,
    /// It goes on in another mode.
    Turned,
    Lost(LostCause),
}

impl End {
    fn as_str(self) -> &'static str {
        match self {
            End::Released => "released",
            End::Turned => "turned",
            End::Lost(LostCause::Lapsed) => "lapsed",
            End::Lost(LostCause::Revoked) => "revoked",
            End::Lost(LostCause::Forgotten) => "forgotten",
            End::Lost(LostCause::MaxHold) => "max_hold",
            End::Lost(LostCause::Closed) => "closed",
        }
    }
}

impl Life {
    fn new(mode: Mode, held: &Held, wait: impl FnOnce() -> Duration) -> Self {
        #[cfg(feature = "metrics")]
        by_mode!(gauge, "relatch_holds", mode).increment(1);
        let span = tracing::debug_span!(
            "relatch.hold",
            name = held.name.as_str(),
            mode = mode.as_str(),
            owner = %held.owner(),
            label = label(&held.label),
            fence = held.fence,
            depth = held.depth(),
            wait_ms = millis(wait()),
            end = Empty,
            held_ms = Empty,
        );
        Self {
            flow: Flow::current(),
            mode,
            since: held.granted,
            span: (!span.is_disabled()).then(|| Box::new(span)),
        }
    }

    /// The same hold, in another mode from now on.
    pub(crate) fn turned(self, mode: Mode, held: &Held, clock: &Clock) -> Self {
        let flow = self.flow;
        self.end(|| End::Turned, clock);
        Self {
            flow,
            since: clock.now(),
            ..Self::new(mode, held, || Duration::ZERO)
        }
    }

    pub(crate) fn end(self, how: impl FnOnce() -> End, clock: &Clock) {
        #[cfg(not(feature = "metrics"))]
        if self.span.is_none() {
            return;
        }
        let held = clock.now().since(self.since);
        if let Some(span) = &self.span {
            span.record("end", how().as_str());
            span.record("held_ms", millis(held));
        }
        #[cfg(feature = "metrics")]
        {
            by_mode!(histogram, "relatch_hold_seconds", self.mode).record(held);
            by_mode!(gauge, "relatch_holds", self.mode).decrement(1);
        }
        #[cfg(not(feature = "metrics"))]
        let _ = self.mode;
    }
}

/// Around a release by a guard.
pub(crate) fn release(held: &Held) -> Span {
    tracing::debug_span!(
        "relatch.release",
        name = held.name.as_str(),
        mode = held.mode().map(Mode::as_str),
        owner = %held.owner(),
        fence = held.fence,
        background = false,
        outcome = Empty,
    )
}

/// Around a release of what was dropped. Not around a withdrawal: that is told by the acquisition.
pub(crate) fn background(call: &Call) -> Span {
    match &call.operation {
        Operation::Release(release) => tracing::debug_span!(
            "relatch.release",
            name = call.name.as_str(),
            owner = %Owner::from_id(release.owner),
            fence = release.fence,
            background = true,
            outcome = Empty,
        ),
        _ => Span::none(),
    }
}

pub(crate) fn released(span: &Span, outcome: Result<(), &Error>) {
    if !span.is_disabled() {
        span.record(
            "outcome",
            match outcome {
                Ok(()) => "released",
                Err(error) if error.is_lost() => "lost",
                Err(error) if error.is_unreachable() => "unreachable",
                Err(_) => "failed",
            },
        );
    }
}

// -- who waits for itself ---------------------------------------------------------------------------------------

/// A course of control: a task, or what a thread runs outside of tasks, as `block_on` does. Not an owner; but a flow that waits for a hold
/// that it acquired itself probably meant to re-enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Task(tokio::task::Id),
    Thread(ThreadId),
}

impl Flow {
    pub(crate) fn current() -> Self {
        match tokio::task::try_id() {
            Some(id) => Flow::Task(id),
            None => Flow::Thread(std::thread::current().id()),
        }
    }
}

/// An acquisition has waited for a while, behind a hold of its own flow.
pub(crate) fn waits_for_itself(name: &str, mode: Mode, owner: &Owner, held: &Held) {
    tracing::warn!(
        name,
        mode = mode.as_str(),
        %owner,
        holder.owner = %held.owner(),
        holder.mode = held.mode().map(Mode::as_str),
        holder.label = label(&held.label),
        "this task waits for a hold that it acquired itself, as another owner; to re-enter, acquire both within one `Owner::scope`"
    );
}

fn label(label: &str) -> Option<&str> {
    (!label.is_empty()).then_some(label)
}

fn millis(time: Duration) -> f64 {
    // As many digits as anybody reads.
    (time.as_secs_f64() * 1e6).round() / 1e3
}
