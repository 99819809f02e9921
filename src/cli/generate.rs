//! `relatch completions` and `relatch man`: made from the same description as the command itself, so they can't fall behind it.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::words::{say, tell};
use super::{Cli, Outcome};

pub(crate) const COMPLETIONS: &str = "\
Examples:
  relatch completions bash > ~/.local/share/bash-completion/completions/relatch
  relatch completions zsh > ~/.zfunc/_relatch       # with ~/.zfunc in fpath
  relatch completions fish > ~/.config/fish/completions/relatch.fish";

#[derive(clap::Args)]
pub(crate) struct Completions {
    /// For which shell
    shell: clap_complete::Shell,
}

#[derive(clap::Args)]
pub(crate) struct Man {
    /// Of this command of relatch; of relatch itself if none is named
    command: Option<String>,
    /// Write all pages into this folder, as relatch.1, relatch-run.1, …
    #[arg(long, value_name = "DIR", conflicts_with = "command", value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

pub(crate) fn completions(args: &Completions) -> anyhow::Result<Outcome> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "relatch", &mut text);
    say(&String::from_utf8_lossy(&text))?;
    Ok(Outcome::Yes)
}

pub(crate) fn man(args: &Man) -> anyhow::Result<Outcome> {
    let pages = pages()?;
    if let Some(dir) = &args.dir {
        fs::create_dir_all(dir).with_context(|| format!("{} can't be made", dir.display()))?;
        for (name, page) in &pages {
            let path = dir.join(format!("{name}.1"));
            fs::write(&path, page).with_context(|| format!("{} can't be written", path.display()))?;
        }
        tell(&format!("{} pages are in {}", pages.len(), dir.display()));
        return Ok(Outcome::Yes);
    }
    let wanted = match &args.command {
        Some(command) => format!("relatch-{command}"),
        None => "relatch".into(),
    };
    let page = pages.iter().find(|(name, _)| *name == wanted);
    let (_, page) =
        page.with_context(|| format!("there is no page {wanted}: see `relatch --help` for the commands"))?;
    say(page)?;
    Ok(Outcome::Yes)
}

/// Each with its name, without what is hidden.
fn pages() -> anyhow::Result<Vec<(String, String)>> {
    let relatch = Cli::command().disable_help_subcommand(true);
    let mut pages = Vec::new();
    let commands = relatch.get_subcommands().filter(|command| !command.is_hide_set());
    let commands = commands.map(|command| {
        let name = format!("relatch-{}", command.get_name());
        let usage = format!("relatch {}", command.get_name());
        command
            .clone()
            .name(name)
            .bin_name(usage)
            .version(env!("CARGO_PKG_VERSION"))
    });
    let all: Vec<clap::Command> = std::iter::once(relatch.clone()).chain(commands).collect();
    for command in all {
        let name = command.get_name().to_owned();
        let mut page = Vec::new();
        clap_mangen::Man::new(command)
            .render(&mut page)
            .context("a page can't be made")?;
        pages.push((name, String::from_utf8_lossy(&page).into_owned()));
    }
    Ok(pages)
}
