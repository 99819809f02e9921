//! How many pairs of our two scripts per second Redis' own client gets out of the server: `redis-benchmark -P 16`, a client in C that does
//! nothing with the answers.
//!
//! It repeats one command, so the two scripts are run one after the other, and their rates combined: a pair takes as long as one of each.
//! Each must do its whole work. So there are many names that were used before, and each run takes a fifth of them, at random: acquisitions
//! find them free, releases held (one in ten comes by a name a second time, and then does less; that makes the floor a little higher). Both are the very calls that a
//! client of the lock sends, but for the number in the first key. A pair in write mode touches no other key.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use redis::Cmd;
use tokio::process::Command;

use super::ground::Ground;
use super::server::Server;

/// What redis-benchmark writes a random number of twelve digits for.
const NUMBER: &str = "__rand_int__";
/// How many names there are; for what is compared with it, too.
pub(crate) fn names(ground: &Ground) -> usize {
    ground.size(20_000, 5_000)
}

/// Where no server answers it would wait for ever.
const BOUND: Duration = Duration::from_secs(60);

pub(crate) struct RedisBenchmark {
    program: &'static str,
    address: Vec<String>,
}

pub(crate) struct Reached {
    pub(crate) pairs_per_second: f64,
    /// What the server says that a pair took it, in microseconds.
    pub(crate) server_us: f64,
}

/// And why.
pub(crate) struct Unable(pub(crate) String);

impl RedisBenchmark {
    pub(crate) async fn find(redis: &Server) -> Result<Self, Unable> {
        let address = redis
            .bare_server
            .for_redis_benchmark()
            .map_err(|why| Unable(why.into()))?;
        // Valkey's is the same program under its own name.
        for program in ["redis-benchmark", "valkey-benchmark"] {
            let mut version = Command::new(program);
            version.arg("--version").stdin(Stdio::null());
            if version.output().await.is_ok_and(|output| output.status.success()) {
                return Ok(Self { program, address });
            }
        }
        Err(Unable(
            "neither redis-benchmark nor valkey-benchmark is on the PATH".into(),
        ))
    }

    pub(crate) async fn measure(&self, ground: &Ground, redis: &Server) -> anyhow::Result<Reached> {
        let names = names(ground);
        let base = ground.name("numbered");
        let name = |number: &dyn std::fmt::Display| format!("{base}/{number}");
        let all: Vec<String> = (0..names)
            .map(|number| name(&format_args!("{number:012}")))
            .collect();
        // Deleted below, or with the case if it ends before that.
        ground.names_too(&all);
        let calls = |words: &[Vec<u8>]| -> anyhow::Result<Vec<Cmd>> {
            all.iter().map(|name| redis.pair.call(words, name)).collect()
        };
        let (acquire, release) = (&redis.pair.acquire, &redis.pair.release);
        let (acquire_all, release_all) = (calls(acquire)?, calls(release)?);

        let measured = async {
            redis.ask_all(&acquire_all).await?;
            redis.ask_all(&release_all).await?;
            let (acquires, acquire_us) = self.rate(redis, acquire, &name(&NUMBER), names).await?;
            redis.ask_all(&acquire_all).await?;
            let (releases, release_us) = self.rate(redis, release, &name(&NUMBER), names).await?;
            anyhow::Ok(Reached {
                pairs_per_second: 1.0 / (1.0 / acquires + 1.0 / releases),
                server_us: acquire_us + release_us,
            })
        }
        .await;
        // They are many: not all case long.
        redis.delete(&all).await?;
        measured
    }

    /// Calls per second, and the server's microseconds for one.
    async fn rate(
        &self,
        redis: &Server,
        words: &[Vec<u8>],
        name: &str,
        names: usize,
    ) -> anyhow::Result<(f64, f64)> {
        let mut command = Command::new(self.program);
        command
            .args(&self.address)
            .args(["-3", "-c", "16", "-P", "16", "--csv"])
            .args(["-n", &(names / 5).to_string(), "-r", &names.to_string()])
            .args(redis.pair.words(words, name)?)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let before = redis.stats().await?;
        let output = tokio::time::timeout(BOUND, command.output())
            .await
            .context("redis-benchmark did not end")?
            .context("redis-benchmark could not be started")?;
        let (calls, usec) = redis.stats().await?.since(&before).scripts();
        let text = String::from_utf8_lossy(&output.stdout);
        let rate = requests_per_second(&text).with_context(|| {
            format!(
                "redis-benchmark said {text:.200} {}",
                String::from_utf8_lossy(&output.stderr)
            )
        })?;
        Ok((rate, usec / calls))
    }
}

/// The second field of the last line; the first may have anything in it.
fn requests_per_second(csv: &str) -> Option<f64> {
    let line = csv.lines().rfind(|line| line.starts_with('"'))?;
    let fields: Vec<&str> = line.trim_end().rsplitn(8, "\",\"").collect();
    // The fields from the last: max, p99, p95, p50, min, average, rate, command.
    let rate = fields.get(6)?.trim_matches('"');
    rate.parse().ok().filter(|rate| *rate > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_whatever_the_command_was() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
            \"EVALSHA a 1 k:{\",\"} 7\",\"181818.17\",\"0.5\",\"0.1\",\"0.4\",\"0.9\",\"1.0\",\"1.2\"\n";
        assert_eq!(requests_per_second(csv), Some(181818.17));
        assert_eq!(requests_per_second("Could not connect to Redis"), None);
        assert_eq!(requests_per_second(csv.lines().next().unwrap_or_default()), None);
    }
}
