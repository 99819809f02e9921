//! What was typed, what it means, and one exit status.
//!
//! The invariant: results go to stdout, everything else to stderr, and nothing below here ends the process.

mod bench;
mod demo;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod simulate;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "relatch", version, about, max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 all is well; 1 the answer is no (a verdict failed, a bar was missed); 2 it could not run."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows the lock at work on a folder tree, checks every promise it makes, and gives a verdict
    #[command(after_help = demo::EXIT)]
    Demo(demo::Args),
    /// Runs the client in a simulated world, one seed after the other, and checks that every promise is kept
    #[command(after_help = simulate::EXIT)]
    Simulate(simulate::Args),
    /// One process of a demo over several: speaks JSON lines with its parent
    #[command(hide = true)]
    DemoWorker,
    /// Measures the lock against floors of the same run, and holds it to its bars
    #[command(after_help = bench::EXIT)]
    Bench(bench::Args),
    /// One process of the case `handoff`: speaks JSON lines with its parent
    #[command(hide = true)]
    BenchWorker,
}

/// Whether what was asked turned out well. "Could not run" is an error.
pub(crate) enum Outcome {
    Yes,
    No,
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(Outcome::Yes) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::FAILURE,
        Err(error) => {
            // Where stderr is gone, too, the status has to do.
            let _ = writeln!(std::io::stderr(), "relatch: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let mut builder = match cli.command {
        // What is measured and its floor run on one thread: a second would compete with the server for its core.
        Command::Bench(_) | Command::BenchWorker => tokio::runtime::Builder::new_current_thread(),
        Command::Demo(_) | Command::DemoWorker | Command::Simulate(_) => {
            tokio::runtime::Builder::new_multi_thread()
        }
    };
    let runtime = builder
        .enable_all()
        .build()
        .context("no runtime could be started")?;
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Demo(args) => demo::run(args).await,
            // Each run has a runtime of its own, within which this one must not be.
            Command::Simulate(args) => tokio::task::spawn_blocking(move || simulate::run(&args))
                .await
                .context("the simulation panicked")?,
            Command::DemoWorker => demo::work().await.map(|()| Outcome::Yes),
            Command::Bench(args) => bench::run(args).await,
            Command::BenchWorker => bench::work().await.map(|()| Outcome::Yes),
        }
    });
    // Reading stdin blocks a thread that nobody can interrupt.
    runtime.shutdown_background();
    outcome
}
