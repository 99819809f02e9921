//! A job takes a lock, and hands what is left of it to another process. The owner goes along, as text: the other process re-enters before this one lets go,
//! and nobody gets in between.
//!
//! `cargo run --example handover [-- --redis redis://127.0.0.1:6379]`. Without a server the second process is a second client.

mod shared;

use std::process::Command;
use std::time::Duration;

use relatch::{Embedded, Error, Owner, Relatch};

const JOB: &str = "example/job";
/// A process is started in this time, or the job fails.
const SOON: Duration = Duration::from_secs(30);

/// Begins the job, and has it finished elsewhere. The fences that both have seen: they are the same hold's.
pub(crate) async fn begin(
    relatch: &Relatch,
    elsewhere: impl AsyncFnOnce(&Owner) -> Result<u64, Box<dyn std::error::Error>>,
) -> Result<(u64, u64), Box<dyn std::error::Error>> {
    let lock = relatch.rwlock(JOB)?;
    let owner = Owner::new();
    let write = lock.write().owner(&owner).label("begins the job").await?;
    let seen = elsewhere(&owner).await?;
    let fence = write.fence();
    // Not before the other one is in: it tells so by its answer.
    write.release().await?;
    Ok((fence, seen))
}

/// The rest of the job, by whoever was told the owner.
pub(crate) async fn finish(relatch: &Relatch, owner: &Owner) -> Result<u64, Error> {
    let write = relatch
        .rwlock(JOB)?
        .write()
        .owner(owner)
        .timeout(SOON)
        .label("finishes the job")
        .await?;
    let fence = write.fence();
    write.release().await?;
    Ok(fence)
}

/// Starts a process that finishes the job, and reads the fence that it prints.
pub(crate) async fn in_a_process(
    mut program: Command,
    owner: &Owner,
) -> Result<u64, Box<dyn std::error::Error>> {
    program.env("RELATCH_EXAMPLE_OWNER", owner.to_string());
    let output = tokio::process::Command::from(program).output().await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let fence = said.lines().find_map(|line| line.strip_prefix("fence "));
    fence
        .and_then(|fence| fence.parse().ok())
        .ok_or_else(|| format!("the other process said {said:?} and {output:?}").into())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    if let Ok(owner) = std::env::var("RELATCH_EXAMPLE_OWNER") {
        let relatch = shared::connect().await?;
        println!("fence {}", finish(&relatch, &owner.parse()?).await?);
        return Ok(relatch.close().await?);
    }
    let (begun, finished) = if std::env::args().any(|argument| argument == "--redis") {
        let relatch = shared::connect().await?;
        let mut this = Command::new(std::env::current_exe()?);
        this.args(std::env::args().skip(1));
        begin(&relatch, async |owner| in_a_process(this, owner).await).await?
    } else {
        let server = Embedded::new();
        let (one, other) = (
            Relatch::builder().embedded_in(&server)?,
            Relatch::builder().embedded_in(&server)?,
        );
        begin(&one, async |owner| Ok(finish(&other, owner).await?)).await?
    };
    println!("begun with fence {begun}, finished elsewhere with fence {finished}: the same hold");
    assert_eq!(begun, finished);
    Ok(())
}
