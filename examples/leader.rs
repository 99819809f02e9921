//! One of several candidates leads. It goes on leading for as long as its hold is renewed, and steps down *before* another can lead: `protect` ends
//! its work when the hold is lost. What it writes carries its fence, so that a late write is refused all the same.
//!
//! `cargo run --example leader [-- --redis redis://127.0.0.1:6379]`

mod shared;

use std::sync::Arc;

use relatch::{Error, Gate, Relatch};
use tokio::sync::mpsc;

const LEADER: &str = "example/leader";

/// What happened, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Leads(&'static str),
    StepsDown(&'static str),
}

/// Stands for office for ever: leads, steps down, stands again.
async fn candidate(
    relatch: Relatch,
    name: &'static str,
    terms: Arc<Gate<Vec<&'static str>>>,
    tell: mpsc::UnboundedSender<Event>,
) -> Result<(), Error> {
    let office = relatch.mutex(LEADER)?;
    loop {
        let held = office.lock().label(name).await?;
        terms.write(held.fence(), |terms| terms.push(name))?;
        let _ = tell.send(Event::Leads(name));
        let lead = std::future::pending::<()>(); // here: whatever a leader does, until it is told to stop
        if let Err(lost) = held.protect(lead).await {
            println!("{name} steps down: {lost}");
        }
        let _ = tell.send(Event::StepsDown(name));
    }
}

/// Two candidates and an operator who takes the office away twice. Who led, in order.
pub(crate) async fn run(one: Relatch, other: Relatch) -> Result<(Vec<Event>, Vec<&'static str>), Error> {
    let terms = Arc::new(Gate::new(Vec::new()));
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut candidates = tokio::task::JoinSet::new();
    candidates.spawn(candidate(one.clone(), "Ada", terms.clone(), tell.clone()));
    let mut events = vec![told.recv().await.expect("Ada leads")];
    candidates.spawn(candidate(other, "Grace", terms.clone(), tell));
    for _ in 0..2 {
        // The other one stands for office by now, also the one that has just stepped down.
        while one.inspect(LEADER).await?.waiter_count == 0 {
            tokio::task::yield_now().await;
        }
        one.revoke(LEADER).await?;
        // One steps down and the other leads; which of the two tells first is open.
        events.push(told.recv().await.expect("one steps down"));
        events.push(told.recv().await.expect("the other leads"));
    }
    let terms = terms.read(Clone::clone);
    // Each that leaves lets the other in.
    candidates.shutdown().await;
    Ok((events, terms))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let relatch = shared::connect().await?;
    let (_, terms) = run(relatch.clone(), relatch.clone()).await?;
    println!("who led: {}", terms.join(", "));
    relatch.close().await
}
