//! `relatch revoke`: takes a name away.

use std::time::Duration;

use relatch::Owner;
use serde_json::json;

use crate::cli::Outcome;
use crate::cli::reach::Reach;
use crate::cli::words::{brief, printable, say, tell};

pub(crate) const LONG: &str = "\
Takes a name away from everybody who holds it, or from one owner, and returns when they no longer do.

Holders are told first, and give back by themselves; where none answers, as its process is dead, its hold ends with its lease. Whoever waits \
stays in line and may hold by the time this returns. Ending this command early does not undo it.";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The name
    name: String,
    /// From this owner only, as `relatch show` tells it
    #[arg(long, value_name = "ID")]
    owner: Option<Owner>,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

/// So long after it was asked whoever waits for it is told what is known.
const ANSWERS: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: Args) -> anyhow::Result<Outcome> {
    let relatch = args.reach.connect().await?;
    let revoking = async {
        match &args.owner {
            Some(owner) => relatch.revoke_owner(&args.name, owner).await,
            None => relatch.revoke(&args.name).await,
        }
    };
    let patience = async {
        tokio::time::sleep(ANSWERS).await;
        let seen = tokio::time::timeout(ANSWERS, relatch.inspect(&args.name)).await;
        let seen = seen.ok().and_then(Result::ok);
        let last = seen
            .iter()
            .flat_map(|seen| &seen.holders)
            .filter(|held| held.revoked);
        match (&seen, last.map(|held| held.lease_left).max()) {
            (_, Some(last)) => tell(&format!(
                "revoked, not given back yet: whoever does not answer holds for {} more, until its lease ends",
                brief(last)
            )),
            (None, None) => tell("the server has not answered yet: nobody may have been told"),
            // It is about to be known.
            (Some(_), None) => {}
        }
        std::future::pending::<std::convert::Infallible>().await
    };
    let taken = tokio::select! {
        biased;
        taken = revoking => taken?,
        never = patience => match never {},
    };
    let _ = relatch.close().await;
    if args.json {
        say(&json!({ "name": args.name, "revoked": taken }).to_string())?;
    } else if taken == 0 {
        let name = printable(&args.name);
        match &args.owner {
            None => tell(&format!("nobody holds {name:?}")),
            Some(owner) => tell(&format!(
                "owner {owner} does not hold {name:?}; `relatch show` tells who does"
            )),
        }
    } else {
        let holds = if taken == 1 { "hold" } else { "holds" };
        say(&format!("revoked {taken} {holds} on {:?}", printable(&args.name)))?;
    }
    Ok(if taken == 0 { Outcome::No } else { Outcome::Yes })
}
