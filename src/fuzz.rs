//! Everything that parses, put to inputs that nobody would write: names, owners, identities, configurations here, what a server
//! says in `backend/redis/fuzz.rs`, command lines in `cli/fuzz.rs`.
//!
//! A target takes bytes, makes of them what its parser takes, and panics when a claim does not hold. Each is run twice: by the
//! tests here, over bytes from a seeded generator (so a run is the same everywhere), and by libFuzzer through the package in
//! `fuzz/`, which looks for bytes that reach further. This module exists for these two only.
//!
//! Claims beyond "it does not panic": what is written reads back equal; what was read writes back to the same text; an error is
//! short enough to print, and names what to do; no password is in anything that is for people.
#![allow(missing_docs, unreachable_pub, reason = "a door for fuzz/, not for users")]

use std::time::Duration;

use arbitrary::{Result, Unstructured};

use crate::config::Config;
use crate::owner::Owner;
use crate::protocol::{ClientId, Ending, MAX_NAME, Mode, Name, OwnerId, RequestId};

#[cfg(feature = "redis")]
pub use crate::backend::redis::fuzz::{addresses, names, pushes, replies, resp, server_words};

/// An error is for a person: whatever was wrong, it is no page.
const LONGEST_ERROR: usize = 1000;

/// Text: as it comes, or of words that mean something to the parser, numbers and characters.
pub(crate) fn text(u: &mut Unstructured<'_>, words: &[&str]) -> Result<String> {
    if u.ratio(1, 4)? {
        let length = u.arbitrary_len::<u8>()?;
        return Ok(String::from_utf8_lossy(u.bytes(length)?).into_owned());
    }
    let mut text = String::new();
    for _ in 0..u.int_in_range(0..=24)? {
        match u.int_in_range(0..=7)? {
            0 => text.push(u.arbitrary()?),
            1 => text.push(char::from(u.int_in_range(b' '..=b'~')?)),
            2 => text.push_str(&u.arbitrary::<u64>()?.to_string()),
            3 => text.push_str(&u.arbitrary::<i16>()?.to_string()),
            _ => text.push_str(u.choose(words)?),
        }
    }
    Ok(text)
}

/// The same text, or one that differs little.
pub(crate) fn tweaked(u: &mut Unstructured<'_>, text: &str) -> Result<String> {
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..u.int_in_range(0..=3)? {
        let at = u.int_in_range(0..=chars.len())?;
        match u.int_in_range(0..=3)? {
            0 => chars.insert(at, char::from(u.int_in_range(b' '..=b'~')?)),
            1 => chars.insert(at, u.arbitrary()?),
            2 if at < chars.len() => drop(chars.remove(at)),
            3 if at < chars.len() => chars.truncate(at),
            _ => {}
        }
    }
    Ok(chars.into_iter().collect())
}

#[track_caller]
pub(crate) fn assert_short(error: &impl std::fmt::Display) {
    let error = error.to_string();
    assert!(
        error.len() <= LONGEST_ERROR,
        "{} bytes of error: {error:.200}",
        error.len()
    );
}

pub(crate) fn owner_id(u: &mut Unstructured<'_>) -> Result<OwnerId> {
    Ok(OwnerId(uuid::Uuid::from_u128(u.arbitrary()?)))
}

pub(crate) fn request_id(u: &mut Unstructured<'_>) -> Result<RequestId> {
    Ok(RequestId {
        client: ClientId(u.arbitrary()?),
        number: u.arbitrary()?,
    })
}

/// A name that is one.
pub(crate) fn name(u: &mut Unstructured<'_>, words: &[&str]) -> Result<Name> {
    let mut text = text(u, words)?;
    let cut = (0..=text.len().min(MAX_NAME))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    text.truncate(cut.unwrap_or(0));
    Ok(Name::new(&text).unwrap_or_else(|_| Name::new("it").expect("a name of two letters")))
}

/// Owners as people and jobs carry them, and every identity as a server has it.
pub fn owners(data: &[u8]) {
    let _ = try_owners(&mut Unstructured::new(data));
}

fn try_owners(u: &mut Unstructured<'_>) -> Result<()> {
    let owner = Owner::from_id(owner_id(u)?);
    assert_eq!(owner.to_string().parse::<Owner>().expect("what it wrote"), owner);
    let json = serde_json::to_string(&owner).expect("an owner can be written");
    assert_eq!(
        serde_json::from_str::<Owner>(&json).expect("what it wrote"),
        owner
    );
    assert_eq!(OwnerId::from_wire(&owner.id().wire()), Some(owner.id()));
    let request = request_id(u)?;
    assert_eq!(RequestId::from_wire(&request.wire()), Some(request));
    assert_eq!(ClientId::from_wire(&request.client.wire()), Some(request.client));

    let written = [
        owner.to_string(),
        owner.id().wire(),
        request.wire(),
        request.client.wire(),
        "upgradable".into(),
        "forgotten".into(),
    ];
    let text = if u.arbitrary()? {
        text(
            u,
            &[
                "-",
                "urn:uuid:",
                "{",
                "}",
                ".",
                "=",
                "+",
                "0",
                "write",
                "read",
                "lapsed",
            ],
        )?
    } else {
        let written = u.choose(&written)?;
        tweaked(u, written)?
    };
    match text.parse::<Owner>() {
        Ok(read) => assert_eq!(read.to_string().parse::<Owner>().expect("what it wrote"), read),
        Err(error) => {
            assert!(error.is_invalid());
            assert!(error.to_string().contains("UUID"), "says what one is: {error}");
            assert_short(&error);
        }
    }
    // On a server there is one way to write each.
    if let Some(read) = OwnerId::from_wire(&text) {
        assert_eq!(read.wire(), text);
    }
    if let Some(read) = ClientId::from_wire(&text) {
        assert_eq!(read.wire(), text);
    }
    if let Some(read) = RequestId::from_wire(&text) {
        assert_eq!(read.wire(), text);
    }
    if let Some(read) = Ending::from_wire(&text) {
        assert_eq!(read.as_str(), text);
    }
    match text.parse::<Mode>() {
        Ok(mode) => assert_eq!(mode.as_str(), text),
        Err(error) => assert_short(&error),
    }
    Ok(())
}

const FIELDS: [&str; 7] = [
    "lease",
    "claim",
    "patience",
    "connect_timeout",
    "response_timeout",
    "idle_ping",
    "fence_retention",
];

/// Configurations, as JSON and as built.
pub fn configurations(data: &[u8]) {
    let _ = try_configurations(&mut Unstructured::new(data));
}

fn try_configurations(u: &mut Unstructured<'_>) -> Result<()> {
    let config = if u.ratio(1, 3)? {
        let json = text(
            u,
            &[
                "{",
                "}",
                "\"",
                ":",
                ",",
                "\"lease\":\"1s\"",
                "\"url\":",
                "null",
                "[",
                "ms",
            ],
        )?;
        let Ok(config) = serde_json::from_str(&json) else {
            return Ok(());
        };
        config
    } else if u.arbitrary()? {
        let mut fields = Vec::new();
        for _ in 0..u.int_in_range(0..=4)? {
            let field = u.choose(&FIELDS)?;
            let value = text(
                u,
                &["1", "30", "s", "ms", "us", "ns", "h", "d", "years", " ", "0", "."],
            )?;
            fields.push(format!("\"{field}\":{}", serde_json::Value::from(value)));
        }
        match serde_json::from_str::<Config>(&format!("{{{}}}", fields.join(","))) {
            Ok(config) => config,
            // The format's crate says it, with what was written: that is the user's own.
            Err(_) => return Ok(()),
        }
    } else {
        let mut config = Config {
            refuse_deadlocks: u.arbitrary()?,
            ..Config::default()
        };
        if u.arbitrary()? {
            config.url = Some(text(u, &["redis://", "embedded", "s3cret", "@", "\"", "\\"])?);
        }
        for field in [
            &mut config.lease,
            &mut config.claim,
            &mut config.patience,
            &mut config.connect_timeout,
            &mut config.response_timeout,
            &mut config.idle_ping,
            &mut config.fence_retention,
        ] {
            *field = match u.int_in_range(0..=4)? {
                0 => Duration::new(u.arbitrary()?, u.int_in_range(0..=999_999_999)?),
                1 => Duration::ZERO,
                2 => Duration::from_nanos(u.arbitrary::<u32>()?.into()),
                _ => Duration::from_millis(u.arbitrary::<u32>()?.into()),
            };
        }
        config
    };

    let json = serde_json::to_string(&config).expect("a configuration can be written");
    match serde_json::from_str::<Config>(&json) {
        Ok(read) => assert_eq!(read, config),
        Err(error) => panic!("{error}: {json}"),
    }
    let shown = format!("{config:?}");
    assert!(!shown.contains("s3cret"), "{shown}");
    if let Err(error) = config.check() {
        assert!(error.is_invalid());
        assert_short(&error);
        let said = error.to_string();
        assert!(
            FIELDS.iter().any(|field| said.contains(field)),
            "names the field: {said}"
        );
        assert!(
            ["longest", "shortest", "is zero"]
                .iter()
                .any(|remedy| said.contains(remedy)),
            "says what it takes: {said}"
        );
    } else {
        // What was accepted can be counted in milliseconds, and added to a time.
        let tuning = config.tuning();
        assert!(tuning.claim_ms > 0 && tuning.claim_ms < 1 << 40 && tuning.retention_ms < 1 << 40);
    }
    Ok(())
}

/// The slices that the tests run.
#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::Rng as _;
    use proptest::test_runner::{RngAlgorithm, TestRng};

    /// Runs a target over seeded inputs: `RELATCH_FUZZ` of them, or 4,000.
    pub(crate) fn slice(target: fn(&[u8])) {
        let runs: u64 = match std::env::var("RELATCH_FUZZ") {
            Ok(runs) => runs.parse().expect("RELATCH_FUZZ is a number"),
            Err(_) => 4000,
        };
        for run in 0..runs {
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&run.to_le_bytes());
            let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
            let mut data = vec![0; (random.next_u32() % 1024) as usize];
            random.fill_bytes(&mut data);
            let _telling = Telling(run);
            target(&data);
        }
    }

    /// Tells which run failed. Its number alone makes the input again.
    struct Telling(u64);

    impl Drop for Telling {
        fn drop(&mut self) {
            if std::thread::panicking() {
                println!("in run {}", self.0);
            }
        }
    }

    /// Found by these targets, as is what `backend/redis/fuzz.rs` has of its own.
    #[test]
    fn a_request_has_one_text() {
        use crate::protocol::RequestId;
        assert!(RequestId::from_wire("AAAAAAAAAAA.7").is_some());
        assert!(RequestId::from_wire("AAAAAAAAAAA.0").is_some());
        for other in [
            "AAAAAAAAAAA.+7",
            "AAAAAAAAAAA.07",
            "AAAAAAAAAAA.00",
            "AAAAAAAAAAA.",
            "AAAAAAAAAAB.7",
        ] {
            assert_eq!(RequestId::from_wire(other), None, "{other}");
        }
    }

    #[test]
    fn what_was_typed_is_not_repeated_at_any_length() {
        let long = "é".repeat(10_000);
        super::assert_short(&long.parse::<crate::Owner>().unwrap_err());
        super::assert_short(&long.parse::<crate::Mode>().unwrap_err());
    }

    macro_rules! slices {
        ($($claim:ident: $target:path;)*) => {
            $(#[test]
            fn $claim() {
                slice($target);
            })*
        };
    }

    slices! {
        owners_read_back_and_bad_ones_get_a_short_error: super::owners;
        configurations_read_back_and_bad_ones_name_the_field: super::configurations;
    }

    #[cfg(feature = "redis")]
    slices! {
        names_never_share_a_key_and_keep_to_one_slot: super::names;
        addresses_never_show_a_password: super::addresses;
        replies_read_back_and_bad_ones_are_told: super::replies;
        pushes_read_back_and_bad_ones_are_told: super::pushes;
        bytes_of_a_server_never_panic: super::resp;
        what_a_server_says_of_itself_is_fit_to_print: super::server_words;
    }
}
