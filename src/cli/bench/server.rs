//! The server itself, past the lock: bare calls for floors, what it counts, and the deletion of what was made.
//!
//! Only the library's backend and this bench name the crate `redis`: a floor is what the same connection costs without the lock.
//! The connection is made as the lock's are, to whichever server has the names of this run.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use redis::Cmd;
use redis::aio::MultiplexedConnection;
use relatch::{Bare, Relatch};

use super::calls::Calls;

/// How long the server is watched before anything is measured on it.
const WATCH: Duration = Duration::from_millis(200);

pub(crate) struct Server {
    pub(crate) bare_server: Bare,
    pub(crate) version: String,
    /// What others did on it before this run began.
    pub(crate) others: Option<String>,
    /// What a client of the lock sends for a pair.
    pub(crate) pair: Calls,
    connection: MultiplexedConnection,
    bare: Cmd,
}

/// Loads a script; gives its EVALSHA without keys and arguments.
pub(crate) async fn load(connection: &MultiplexedConnection, script: &str) -> anyhow::Result<Cmd> {
    let sha: String = redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(script)
        .query_async(&mut connection.clone())
        .await?;
    let mut call = redis::cmd("EVALSHA");
    call.arg(sha);
    Ok(call)
}

impl Server {
    /// The one that has this name.
    pub(crate) async fn connect(client: &Relatch, name: &str) -> anyhow::Result<Self> {
        let bare_server = client.bare(name).await?;
        let (connection, _) = bare_server
            .connect()
            .await
            .context("a bare connection to the server")?;
        let mut bare = load(&connection, "return 1").await?;
        bare.arg(0);
        let text: String = redis::cmd("INFO")
            .arg("server")
            .query_async(&mut connection.clone())
            .await?;
        let field = |wanted: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'))
        };
        let version = field("valkey_version").or(field("redis_version"));
        let mut server = Self {
            version: version.unwrap_or("unknown").trim().to_owned(),
            others: None,
            pair: Calls::of(&bare_server),
            bare_server,
            connection,
            bare,
        };
        let before = server.stats().await?;
        tokio::time::sleep(WATCH).await;
        let calls = server.stats().await?.since(&before).commands();
        server.others = (calls > 10.0).then(|| {
            let rate = calls / WATCH.as_secs_f64();
            format!(
                "others use this server, too ({rate:.0} commands/s before this began): what it counts is not only ours"
            )
        });
        Ok(server)
    }

    /// What the server needs at least to be asked something, twice.
    pub(crate) async fn bare_pair(&self) -> anyhow::Result<()> {
        for _ in 0..2 {
            self.bare().await?;
        }
        Ok(())
    }

    pub(crate) async fn bare(&self) -> anyhow::Result<()> {
        let answer: i64 = self.bare.query_async(&mut self.connection.clone()).await?;
        ensure!(answer == 1, "the server answered {answer} to `return 1`");
        Ok(())
    }

    pub(crate) async fn ask<T: redis::FromRedisValue>(&self, command: &Cmd) -> anyhow::Result<T> {
        Ok(command.query_async(&mut self.connection.clone()).await?)
    }

    /// Makes all these calls, in batches.
    pub(crate) async fn ask_all(&self, commands: &[Cmd]) -> anyhow::Result<()> {
        for batch in commands.chunks(1000) {
            let mut pipeline = redis::Pipeline::with_capacity(batch.len());
            for command in batch {
                pipeline.add_command(command.clone()).ignore();
            }
            let () = pipeline.query_async(&mut self.connection.clone()).await?;
        }
        Ok(())
    }

    /// What it has counted so far. Never resets anything.
    pub(crate) async fn stats(&self) -> anyhow::Result<Stats> {
        let mut info = redis::cmd("INFO");
        info.arg("commandstats");
        let text: String = self.ask(&info).await?;
        Ok(Stats::parse(&text))
    }

    pub(crate) async fn delete(&self, names: &[String]) -> anyhow::Result<()> {
        let deletion = |name: &String| {
            let mut unlink = redis::cmd("UNLINK");
            unlink.arg(&Bare::keys(name)?);
            anyhow::Ok(unlink)
        };
        let deletions = names.iter().map(deletion).collect::<Result<Vec<Cmd>, _>>()?;
        self.ask_all(&deletions).await
    }

    /// What all keys of a name take.
    pub(crate) async fn memory(&self, name: &str) -> anyhow::Result<f64> {
        let mut bytes = 0.0;
        for key in Bare::keys(name)? {
            bytes += self.key_memory(&key).await?;
        }
        Ok(bytes)
    }

    pub(crate) async fn key_memory(&self, key: &str) -> anyhow::Result<f64> {
        let mut usage = redis::cmd("MEMORY");
        // 0: every member is looked at, none is guessed.
        usage.arg("USAGE").arg(key).arg("SAMPLES").arg(0);
        Ok(self.ask::<Option<u64>>(&usage).await?.unwrap_or(0) as f64)
    }
}

/// Per command: how often it was called, and for how many microseconds in all.
#[derive(Debug, Default)]
pub(crate) struct Stats(BTreeMap<String, (f64, f64)>);

impl Stats {
    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (command, numbers) = line.strip_prefix("cmdstat_")?.split_once(':')?;
            let number = |wanted: &str| {
                numbers.split(',').find_map(|number| {
                    number
                        .strip_prefix(wanted)?
                        .strip_prefix('=')?
                        .trim()
                        .parse()
                        .ok()
                })
            };
            Some((command.to_owned(), (number("calls")?, number("usec")?)))
        };
        Self(text.lines().filter_map(line).collect())
    }

    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let difference = |(command, (calls, usec)): (&String, &(f64, f64))| {
            let (calls_then, usec_then) = earlier.0.get(command).copied().unwrap_or_default();
            (command.clone(), (calls - calls_then, usec - usec_then))
        };
        Self(self.0.iter().map(difference).collect())
    }

    /// All of them, those within scripts as well; but for our own looking.
    pub(crate) fn commands(&self) -> f64 {
        let ours = |command: &&String| !command.starts_with("info");
        self.0
            .keys()
            .filter(ours)
            .filter_map(|command| self.0.get(command))
            .map(|(calls, _)| calls)
            .sum()
    }

    /// Scripts: how many, and their microseconds in the server, with all that they called.
    pub(crate) fn scripts(&self) -> (f64, f64) {
        ["evalsha", "eval"]
            .iter()
            .filter_map(|command| self.0.get(*command))
            .fold((0.0, 0.0), |(calls, usec), (more, longer)| {
                (calls + more, usec + longer)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_counts_is_told_as_a_difference() {
        let earlier = Stats::parse(
            "# Commandstats\r\ncmdstat_evalsha:calls=10,usec=100,usec_per_call=10.00,rejected_calls=0\r\n",
        );
        let later = Stats::parse(
            "cmdstat_evalsha:calls=14,usec=130,usec_per_call=9.29\r\ncmdstat_hget:calls=3,usec=2\r\ncmdstat_info:calls=9,usec=900\r\nnonsense\r\n",
        );
        let since = later.since(&earlier);
        assert_eq!(since.scripts(), (4.0, 30.0));
        assert_eq!(since.commands(), 7.0);
    }
}
