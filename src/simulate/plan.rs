//! What a seed is: how many clients and names, which settings, which faults and how often.

use std::time::Duration;

use fastrand::Rng;
use serde::Serialize;

use crate::config::Config;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A message takes longer than a server may take to answer.
    Delay,
    /// A request, and what follows it on its connection, never arrives.
    LoseRequest,
    /// A reply, and what follows it, never arrives.
    LoseReply,
    /// A request arrives twice, the second time perhaps much later.
    Repeat,
    /// A connection ends, under a request or at any time; or a new one is never answered.
    Cut,
    /// A push never comes, although the server counted it as heard.
    LosePush,
    /// The server finds out late that a connection has ended, and goes on to carry out what it had received.
    HalfOpen,
    /// One reply is missing, so that the next one looks like the answer to an earlier call.
    OutOfStep,
    /// The server stops for a while and goes on.
    Stall,
    /// The server is down for a while, and comes back with everything.
    Restart,
    /// The server comes back with nothing.
    LoseData,
    /// Another server takes over, which is behind, and whose clock may show another time.
    FailOver,
    /// The server forgets the scripts.
    FlushScripts,
    /// The server refuses everything for a while: it is loading, or out of memory.
    Refuse,
    /// The server's clock is set back, or forward by less than leases bear (A2), all in all.
    StepClock,
    /// A client's process is stopped, perhaps for longer than its leases, and goes on.
    Pause,
    /// A client's process ends without a word.
    Crash,
    /// A future is dropped before it is done.
    Drop,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 18] = [
        Fault::Delay,
        Fault::LoseRequest,
        Fault::LoseReply,
        Fault::Repeat,
        Fault::Cut,
        Fault::LosePush,
        Fault::HalfOpen,
        Fault::OutOfStep,
        Fault::Stall,
        Fault::Restart,
        Fault::LoseData,
        Fault::FailOver,
        Fault::FlushScripts,
        Fault::Refuse,
        Fault::StepClock,
        Fault::Pause,
        Fault::Crash,
        Fault::Drop,
    ];

    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::Delay => "long delays",
            Fault::LoseRequest => "requests lost",
            Fault::LoseReply => "replies lost",
            Fault::Repeat => "requests repeated",
            Fault::Cut => "connections cut",
            Fault::LosePush => "pushes lost",
            Fault::HalfOpen => "half-open connections",
            Fault::OutOfStep => "replies out of step",
            Fault::Stall => "server stalls",
            Fault::Restart => "restarts with the data",
            Fault::LoseData => "restarts without the data",
            Fault::FailOver => "fail-overs to a replica behind",
            Fault::FlushScripts => "scripts forgotten",
            Fault::Refuse => "refusals for a while",
            Fault::StepClock => "server clock steps",
            Fault::Pause => "clients paused",
            Fault::Crash => "clients crashed",
            Fault::Drop => "futures dropped",
        }
    }
}

/// A fault of the lock itself, made on purpose, to see that the simulation finds it. All are made from outside, by a
/// world that does not keep what the client may rely on; breaking the client's own code is for whoever works on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Flaw {
    /// Clients' clocks run slower than leases allow for: as if no margin were taken off.
    ClocksApart,
    /// Withdrawals are answered and not done.
    WithdrawalsForgotten,
    /// Releases are answered and not done.
    ReleasesForgotten,
    /// The server does not see that an acquisition is sent once more, and makes another of it.
    ResentIsNew,
    /// The server's clock is set forward by more than leases bear.
    ClockForward,
    /// Who is granted a hold by way of the line believes that it lasts longer than it does.
    LongGrants,
    /// A server that comes back counts its fences from where it was, and not from the clock.
    FencesByCount,
    /// An owner that writes again has the fence that it had before, if nobody wrote in between.
    FencesReused,
    /// Whoever stands in line is told nothing for good, but that it stands there.
    GrantsWithheld,
    /// What the server has lost it says to have renewed.
    LossDenied,
    /// Whoever waits for `lost()` runs late.
    LostUnheard,
    /// Some that want to wait are refused, whoever they are.
    RefusedForNothing,
    /// Acquisitions are made without the timeout that was asked for.
    TimeoutsForgotten,
    /// Acquisitions are made with a timeout that nobody asked for.
    TimeoutsUnasked,
    /// Clients give up long before their patience ends.
    Impatient,
}

impl Flaw {
    /// All of them.
    pub const ALL: [Flaw; 15] = [
        Flaw::ClocksApart,
        Flaw::WithdrawalsForgotten,
        Flaw::ReleasesForgotten,
        Flaw::ResentIsNew,
        Flaw::ClockForward,
        Flaw::LongGrants,
        Flaw::FencesByCount,
        Flaw::FencesReused,
        Flaw::GrantsWithheld,
        Flaw::LossDenied,
        Flaw::LostUnheard,
        Flaw::RefusedForNothing,
        Flaw::TimeoutsForgotten,
        Flaw::TimeoutsUnasked,
        Flaw::Impatient,
    ];

    /// What a run that it breaks must say: the promise, as `docs/guarantees.md` numbers them.
    pub fn breaks(self) -> &'static str {
        match self {
            Flaw::ClocksApart | Flaw::ClockForward | Flaw::LongGrants => "G1 ",
            Flaw::LossDenied => "by a lease that the server lost",
            Flaw::LostUnheard => "G2 ",
            Flaw::FencesByCount | Flaw::FencesReused => "G3 ",
            Flaw::RefusedForNothing => "G4 ",
            Flaw::ResentIsNew => "G6 ",
            Flaw::WithdrawalsForgotten | Flaw::ReleasesForgotten => "G7 left behind",
            Flaw::GrantsWithheld => "does not get on",
            Flaw::TimeoutsForgotten | Flaw::TimeoutsUnasked | Flaw::Impatient => "G9 ",
        }
    }
}

pub(super) struct Plan {
    pub(super) clients: usize,
    pub(super) tasks: usize,
    pub(super) names: usize,
    /// How long faults go on.
    pub(super) trouble_ms: u64,
    pub(super) config: Config,
    pub(super) response_ms: u64,
    pub(super) lease_ms: u64,
    /// How long a message takes at most, usually.
    pub(super) delay_ms: u64,
    /// How much later something that is late can come.
    pub(super) late_ms: u64,
    /// How often a message meets with one kind of fault.
    pub(super) per_mille: u64,
    /// How long it is between two of the other kind, at most.
    pub(super) every_ms: u64,
    faults: Vec<Fault>,
    pub(super) trust: bool,
    /// How long users work and rest, at most.
    pub(super) rest_ms: u64,
    pub(super) flaw: Option<Flaw>,
}

impl Plan {
    pub(super) fn draw(rng: &mut Rng, flaw: Option<Flaw>) -> Self {
        let mut pick = |choices: &[u64]| choices[rng.usize(..choices.len())];
        let lease_ms = pick(&[120, 300, 1000, 3000, 10_000]);
        let claim_ms = pick(&[100, 300, 1000, 3000]);
        let response_ms = pick(&[40, 150, 600, 2000]);
        let (delay_ms, per_mille) = (pick(&[0, 1, 3, 10]), pick(&[0, 2, 5, 10, 20]));
        let config = Config {
            lease: Duration::from_millis(lease_ms),
            claim: Duration::from_millis(claim_ms),
            response_timeout: Duration::from_millis(response_ms),
            // A link takes several round trips.
            connect_timeout: Duration::from_millis(response_ms * pick(&[1, 3]) + delay_ms * 20),
            idle_ping: Duration::from_millis(pick(&[100, 500, 2000])),
            patience: Duration::from_millis(pick(&[500, 3000, 20_000])),
            fence_retention: Duration::from_millis(pick(&[0, 2000, 3_600_000])),
            ..Config::default()
        };
        let (trouble_ms, every_ms) = (pick(&[300, 1000, 3000, 8000]), pick(&[50, 200, 1000]));
        // In a long run they do as much as in a short one.
        let rest_ms = pick(&[5, 20, 80]).max(trouble_ms / 50);
        let kinds = pick(&[0, 2, 5, 18]);
        let mut faults = Fault::ALL.to_vec();
        rng.shuffle(&mut faults);
        faults.truncate(usize::try_from(kinds).unwrap_or(0));
        // An error carries no number: one that is out of step can't be told from the answer to this call.
        if faults.contains(&Fault::OutOfStep) {
            faults.retain(|fault| *fault != Fault::Refuse);
        }
        Self {
            clients: rng.usize(2..=5),
            tasks: rng.usize(1..=4),
            names: rng.usize(1..=3),
            trouble_ms,
            config,
            response_ms,
            lease_ms,
            delay_ms,
            late_ms: response_ms * 4 + lease_ms,
            per_mille,
            every_ms,
            faults,
            trust: rng.u8(0..5) > 0,
            rest_ms,
            flaw,
        }
    }

    /// How long a client may take to find a dead link and to make it anew.
    pub(super) fn link(&self) -> Duration {
        self.config.connect_timeout + self.config.response_timeout * 4 + self.config.idle_ping * 2
    }

    pub(super) fn does(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// Those that happen to the world as a whole, and not to a message.
    pub(super) fn blows(&self) -> Vec<Fault> {
        let mut blows: Vec<Fault> = self
            .faults
            .iter()
            .copied()
            .filter(|fault| {
                matches!(
                    fault,
                    Fault::Delay
                        | Fault::Cut
                        | Fault::Stall
                        | Fault::Restart
                        | Fault::LoseData
                        | Fault::FailOver
                        | Fault::FlushScripts
                        | Fault::Refuse
                        | Fault::StepClock
                        | Fault::Pause
                        | Fault::Crash
                )
            })
            .collect();
        blows.sort_unstable();
        blows
    }
}
