//! What was typed, what it means, and one exit status.
//!
//! The invariant: results go to stdout, everything else to stderr, and nothing below here ends the process.

mod bench;
mod demo;
mod exporter;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod generate;
mod look;
mod picture;
mod reach;
#[cfg(unix)]
mod run;
mod simulate;
mod words;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "relatch", version, about, max_term_width = 100)]
#[command(
    after_help = concat!(
        "Exit status: 0 all is well; 1 the answer is no (nobody holds, a verdict failed, a bar was missed); 2 it could not run.\n",
        "`relatch run` has the status of its command, and more: see `relatch run --help`."
    )
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a command while it holds locks
    #[cfg(unix)]
    #[command(long_about = run::LONG, after_help = run::help())]
    Run(run::Args),
    /// Ends the command of a `run` that was killed or stands still
    #[cfg(unix)]
    #[command(hide = true)]
    RunKeeper,
    /// Becomes the command of a `run` when it is told to
    #[cfg(unix)]
    #[command(hide = true)]
    RunStart(run::start::Args),
    /// Lists names: who holds, how many wait, for how long
    #[command(after_help = look::ls::EXAMPLES)]
    Ls(look::ls::Args),
    /// Shows one name: who holds it since when, and who waits
    #[command(after_help = look::EXIT)]
    Show(look::show::Args),
    /// Shows names live; sort, filter, open and revoke them
    #[command(long_about = look::watch::LONG)]
    Watch(look::watch::Args),
    /// Tells what happens to names, a line each
    #[command(long_about = look::events::LONG, after_help = look::events::EXAMPLES)]
    Events(look::events::Args),
    /// Watches names for a while, and draws who held and who waited
    #[command(long_about = look::trace::LONG, after_help = look::trace::EXAMPLES)]
    Trace(look::trace::Args),
    /// Serves what the server knows of its locks for Prometheus
    #[command(long_about = exporter::LONG, after_help = exporter::EXAMPLES)]
    Exporter(exporter::Args),
    /// Takes a name away from who holds it
    #[command(long_about = look::revoke::LONG, after_help = look::EXIT)]
    Revoke(look::revoke::Args),
    /// Looks for what would trouble locks on a server, and tells the remedies
    #[command(long_about = look::doctor::LONG, after_help = look::EXIT)]
    Doctor(look::doctor::Args),
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
    /// Prints a shell's completions
    #[command(after_help = generate::COMPLETIONS)]
    Completions(generate::Completions),
    /// Prints a man page, or writes all of them
    Man(generate::Man),
}

/// Whether what was asked turned out well. "Could not run" is an error.
pub(crate) enum Outcome {
    Yes,
    No,
    /// A status that says more.
    Status(u8),
}

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(match error.exit_code() {
                2 => misspelt(),
                status => u8::try_from(status).unwrap_or(2),
            });
        }
    };
    match run(cli) {
        Ok(Outcome::Yes) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::FAILURE,
        Ok(Outcome::Status(status)) => ExitCode::from(status),
        // Whoever read what we print had enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Where stderr is gone, too, the status has to do.
            let _ = writeln!(std::io::stderr(), "relatch: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The status of `run` must not be taken for its command's.
fn misspelt() -> u8 {
    #[cfg(unix)]
    if std::env::args_os().nth(1).is_some_and(|command| command == "run") {
        return run::COULD_NOT_RUN;
    }
    2
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    // Without a runtime, and its threads.
    #[cfg(unix)]
    match cli.command {
        Command::RunKeeper => return Ok(Outcome::Status(run::keeper::keep())),
        Command::RunStart(args) => return Ok(Outcome::Status(run::start::start(&args))),
        _ => {}
    }
    let mut builder = match cli.command {
        // What is measured and its floor run on one thread: a second would compete with the server for its core.
        Command::Bench(_) | Command::BenchWorker => tokio::runtime::Builder::new_current_thread(),
        Command::Demo(_) | Command::DemoWorker | Command::Simulate(_) => {
            tokio::runtime::Builder::new_multi_thread()
        }
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = builder
        .enable_all()
        .build()
        .context("no runtime could be started")?;
    let outcome = runtime.block_on(async {
        match cli.command {
            #[cfg(unix)]
            Command::Run(args) => Ok(Outcome::Status(run::run(args).await)),
            #[cfg(unix)]
            Command::RunKeeper | Command::RunStart(_) => Ok(Outcome::Yes),
            Command::Ls(args) => look::ls::run(args).await,
            Command::Show(args) => look::show::run(args).await,
            Command::Watch(args) => look::watch::run(args).await,
            Command::Events(args) => look::events::run(args).await,
            Command::Trace(args) => look::trace::run(args).await,
            Command::Exporter(args) => exporter::run(args).await,
            Command::Revoke(args) => look::revoke::run(args).await,
            Command::Doctor(args) => look::doctor::run(args).await,
            Command::Completions(args) => generate::completions(&args),
            Command::Man(args) => generate::man(&args),
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
