//! What a client of the lock sends for one pair, word for word, for other names.
//!
//! A floor that runs "the same two scripts" needs their very calls, and the deletion of a name's keys needs their names. Both are the library's own.

use anyhow::Context as _;
use redis::Cmd;
use relatch::Bare;

/// The calls of a pair in write mode.
#[derive(Clone)]
pub(crate) struct Calls {
    pub(crate) acquire: Vec<Vec<u8>>,
    pub(crate) release: Vec<Vec<u8>>,
}

/// Where keys begin in a call: behind the command, the script and their number.
const KEYS: usize = 3;

impl Calls {
    pub(crate) fn of(bare: &Bare) -> Self {
        Self {
            acquire: bare.acquire.clone(),
            release: bare.release.clone(),
        }
    }

    /// As [`call`](Self::call), for a command line, but for the keys that a pair does not touch: a number in each of these would be another
    /// in each.
    pub(crate) fn words(&self, words: &[Vec<u8>], name: &str) -> anyhow::Result<Vec<String>> {
        let first = Bare::keys(name)?.into_iter().next().unwrap_or_default();
        let word = |(at, word): (usize, &Vec<u8>)| {
            if at == KEYS {
                return Ok(first.clone());
            }
            let text = std::str::from_utf8(word).context("an argument that no command line takes")?;
            anyhow::Ok(text.to_owned())
        };
        words.iter().enumerate().map(word).collect()
    }

    /// A call, for another name.
    pub(crate) fn call(&self, words: &[Vec<u8>], name: &str) -> anyhow::Result<Cmd> {
        let keys = Bare::keys(name)?;
        let mut call = Cmd::new();
        for (at, word) in words.iter().enumerate() {
            match at.checked_sub(KEYS).and_then(|at| keys.get(at)) {
                Some(key) => call.arg(key),
                None => call.arg(word),
            };
        }
        Ok(call)
    }
}
