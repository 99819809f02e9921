//! Which server: what a command takes, and in which order it looks.
//!
//! `--redis`, else `RELATCH_REDIS`, else the `url` of a configuration file: the one of `--config`, else of `RELATCH_CONFIG`, else
//! `$XDG_CONFIG_HOME/relatch/config.toml` (`~/.config/…`). Everything else in the file counts whoever named the server. No server is guessed: a lock on another server than the
//! others' excludes nobody.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use relatch::{Builder, Config, Relatch};

pub(crate) const HELP: &str = "\
The server: --redis, else RELATCH_REDIS, else `url` in the file of --config, else of RELATCH_CONFIG, else
~/.config/relatch/config.toml (or $XDG_CONFIG_HOME/relatch/config.toml).";

#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Server")]
pub(crate) struct Reach {
    /// What keeps the locks: redis://[[user]:password@]host[:port][/database], rediss://… (TLS), unix:///path,
    /// redis+sentinel://host,host,…/primary-name, or redis-cluster://host,host,… (these over TLS: rediss…)
    #[arg(long, value_name = "URL", env = "RELATCH_REDIS", hide_env_values = true)]
    pub(crate) redis: Option<String>,
    /// A TOML file with `url = "redis://…"` and other settings, such as `lease = "30s"`
    #[arg(long, value_name = "FILE", env = "RELATCH_CONFIG", value_hint = clap::ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
}

impl Reach {
    /// What is set, with the server.
    pub(crate) fn settings(&self) -> anyhow::Result<Config> {
        let file = self
            .config
            .clone()
            .filter(|path| !path.as_os_str().is_empty())
            .or_else(|| by_default().filter(|path| path.exists()));
        let mut config = match &file {
            Some(path) => read(path)?,
            None => Config::default(),
        };
        // A variable that is empty says nothing.
        if let Some(url) = self.redis.as_ref().filter(|url| !url.is_empty()) {
            config.url = Some(url.clone());
        }
        match config.url.as_deref() {
            None => {
                let place = by_default().map_or_else(String::new, |path| format!(" or {}", path.display()));
                bail!(
                    "no server is named: give --redis URL, set RELATCH_REDIS, or write `url = \"redis://…\"` into the file of --config{place}"
                )
            }
            Some("embedded") => bail!(
                "an embedded server is inside one process, where no command reaches it: name a Redis server with --redis"
            ),
            Some(_) => Ok(config),
        }
    }

    /// A client that gives up soon: somebody sits in front of it.
    pub(crate) async fn connect(&self) -> anyhow::Result<Relatch> {
        let config = self.settings()?;
        let patience = config.patience.min(PATIENCE);
        Ok(Builder::from(config).patience(patience).connect().await?)
    }

    /// For a command that is started by this one and uses the same server. A password from a file stays in the file.
    pub(crate) fn environment(&self) -> Vec<(&'static str, std::ffi::OsString)> {
        let mut variables = Vec::new();
        if let Some(url) = &self.redis {
            variables.push(("RELATCH_REDIS", url.into()));
        }
        if let Some(file) = &self.config {
            let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
            variables.push(("RELATCH_CONFIG", file.into()));
        }
        variables
    }
}

/// How long somebody who only looks waits for a server that went away.
const PATIENCE: Duration = Duration::from_secs(5);

fn by_default() -> Option<PathBuf> {
    let folder = match env::var_os("XDG_CONFIG_HOME").map(PathBuf::from) {
        Some(folder) if folder.is_absolute() => folder,
        _ => PathBuf::from(env::var_os("HOME").filter(|home| !home.is_empty())?).join(".config"),
    };
    Some(folder.join("relatch/config.toml"))
}

fn read(path: &Path) -> anyhow::Result<Config> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("the configuration file {} can't be read", path.display()))?;
    // Not as the error shows itself: with the line, which may have a password in it.
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| {
            1 + text.get(..span.start).unwrap_or(&text).matches('\n').count()
        });
        anyhow!("{}, line {line}: {}", path.display(), error.message().trim_end())
    })
}

/// `10s`, `1h 30m`, or a number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let time = match text.parse::<f64>() {
        Ok(seconds) if seconds < 0.0 => Err("it is negative".to_owned()),
        Ok(seconds) => {
            Duration::try_from_secs_f64(seconds).map_err(|_| "nothing lasts for so long".to_owned())
        }
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string()),
    };
    time.map_err(|error| format!("{error}; write 10s, 1500ms or 1h 30m"))
}

/// How often to look at a server: no more often than that does it any good.
pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        short if short < LEAST => Err(format!("it is too often: at least {}ms", LEAST.as_millis())),
        interval => Ok(interval),
    }
}

const LEAST: Duration = Duration::from_millis(10);
