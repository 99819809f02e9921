//! What it means when a server answers with an error.
//!
//! An error is known by its code, the first word. Redis 6.2 hides the code of an error that a script ran into within
//! another (`ERR Error running script …: @user_script: 7: WRONGTYPE …`), so it is looked for there as well.

use ::redis::ServerError;

use crate::backend::redis::options::FORMS;
use crate::error::{Error, ErrorKind};

/// What an ACL must say of our keys and channels.
pub(super) const KEYS: &str = "~relatch:1:*";
pub(super) const CHANNELS: &str = "&relatch:1:client:*";

/// What to do about an error of the server's.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It does not know the script: send it.
    NoScript,
    /// Nothing happened; it may well go better in a moment.
    Later(Error),
    /// Nothing happened, and nothing will on this link.
    Elsewhere(Error),
    /// It says no.
    No(Error),
}

impl Refusal {
    pub(super) fn into_error(self) -> Error {
        match self {
            Refusal::Later(error) | Refusal::Elsewhere(error) | Refusal::No(error) => error,
            Refusal::NoScript => {
                ErrorKind::Server("the server does not know the script it was just given".into()).into()
            }
        }
    }
}

/// The codes that something is made of.
const CODES: [&str; 20] = [
    "NOSCRIPT",
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "NOREPLICAS",
    "READONLY",
    "WRONGTYPE",
    "OOM",
    "NOPERM",
    "NOAUTH",
    "WRONGPASS",
    "MISCONF",
    "MOVED",
    "ASK",
    "CROSSSLOT",
    "DENIED",
    "NOPROTO",
    "ERR",
];

/// `place` is the server's address, `what` what was touched: a key, or words.
pub(super) fn classify(place: &str, what: &str, error: &ServerError) -> Refusal {
    let details = error.details().unwrap_or_default();
    let code = code(error.code(), details);
    let said = said(error);
    let later = |why: &str| Refusal::Later(ErrorKind::Unreachable(format!("{place} {why} ({said})")).into());
    let no = |why: String| Refusal::No(ErrorKind::Server(format!("{why} ({place} said: {said})")).into());
    match code {
        "NOSCRIPT" => Refusal::NoScript,
        "LOADING" => later("is still loading its data"),
        "BUSY" => later("is busy with a slow script"),
        "MASTERDOWN" => later("is a replica that has lost its primary"),
        "TRYAGAIN" => later("is moving this key"),
        "CLUSTERDOWN" => later("is part of a cluster that is down"),
        "NOREPLICAS" => later("has too few replicas to take writes"),
        "ERR" if details.starts_with("max number of clients") => {
            later("takes no more connections: raise its maxclients or close some")
        }
        "READONLY" => Refusal::Elsewhere(
            ErrorKind::Unreachable(format!(
                "{place} is a read-only replica: name its primary, or let Sentinels find it, redis+sentinel://… ({said})"
            ))
            .into(),
        ),
        "WRONGTYPE" => no(format!("{what} holds something else: delete or rename it")),
        "OOM" => no("the server is out of memory: raise its maxmemory or free some".into()),
        // Not in the server's words: they name the user.
        "NOPERM" => Refusal::No(
            ErrorKind::Server(format!(
                "{place} does not let this user do what relatch needs (NOPERM): ACL SETUSER <user> {}",
                missing_rule(details)
            ))
            .into(),
        ),
        "NOAUTH" => no(format!(
            "the server wants a password: name it in the address, {FORMS}"
        )),
        "WRONGPASS" => no(format!(
            "the server does not take this user and password: correct them in the address, {FORMS}"
        )),
        "MISCONF" => no("the server takes no writes as it can't save them: see its log".into()),
        "DENIED" => no(
            "the server takes no connections from here (protected mode): set a password, or bind it".into(),
        ),
        "MOVED" | "ASK" | "CROSSSLOT" => {
            no("this is a node of a cluster: write redis-cluster://… and some of its nodes".into())
        }
        // A script came upon a key that had just been moved away. The next node finishes what was begun.
        "ERR" if details.contains("non local key") => later("is moving this key"),
        "NOPROTO" => {
            no("the server does not speak RESP3: use Redis 6.2 or newer, or go past the proxy".into())
        }
        _ => no(format!("the server refused to touch {what}")),
    }
}

/// The rule that is missing where a server says what this user may not do.
pub(super) fn missing_rule(details: &str) -> String {
    // The user's name may be in it, and be anything, but for spaces.
    if !of_a_command(details) && details.contains(" key") {
        KEYS.into()
    } else if !of_a_command(details) && details.contains(" channel") {
        CHANNELS.into()
    } else {
        match denied_command(details) {
            Some(command) => format!("+{command}"),
            None => format!("{KEYS} {CHANNELS} and the commands that docs/deployments.md lists"),
        }
    }
}

/// `… has no permissions to run the 'script|load' command`
pub(super) fn denied_command(details: &str) -> Option<&str> {
    details.split('\'').nth(1).filter(|command| {
        command
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '|' | '-' | '_'))
    })
}

/// Whether that is what this user may not run, rather than what it may not touch: `… to run the 'get' command`, `… can't run this command`.
pub(super) fn of_a_command(details: &str) -> bool {
    details.contains(" run th")
}

/// Whether it came up while a script ran, or the script says it itself. Redis 6.2 says in which line, later ones besides in which script.
pub(super) fn by_script(error: &ServerError) -> bool {
    error.code().starts_with("@user_script")
        || error
            .details()
            .is_some_and(|details| details.contains("user_script") || details.contains(" script: "))
}

/// The code, also where it is within another.
pub(super) fn code_of(error: &ServerError) -> &str {
    code(error.code(), error.details().unwrap_or_default())
}

fn code<'a>(code: &'a str, details: &'a str) -> &'a str {
    // Said of what a script calls, without a code: up to Redis 7.0 in the one way, from 7.2 on, and by Valkey, in the other.
    if details.contains("he user executing the script can't") || details.contains("ACL failure in script") {
        return "NOPERM";
    }
    // What a script ran into, or gave as its own answer.
    let by_script = code == "ERR" && details.contains("unning script") || code.starts_with("@user_script");
    if !by_script {
        return code;
    }
    details
        .split([' ', ':', '-'])
        .find(|word| *word != "ERR" && CODES.contains(word))
        .unwrap_or(code)
}

/// Fit to be read: no control characters, no page of it, and not where in which script it came up.
pub(super) fn said(error: &ServerError) -> String {
    let details = error.details().unwrap_or_default();
    let details = details.split(" script: ").next().unwrap_or_default();
    printable(&format!("{} {details}", error.code()))
}

pub(super) fn printable(text: &str) -> String {
    const LONGEST: usize = 240;
    let mut out: String = text
        .trim()
        .chars()
        .take(LONGEST)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.trim().chars().count() > LONGEST {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(line: &str) -> Refusal {
        let (code, detail) = line.split_once(' ').unwrap_or((line, ""));
        let error = ::redis::make_extension_error(code.to_owned(), Some(detail.to_owned()));
        classify("redis://cache:6379", "relatch:1:{x}", &error.try_into().unwrap())
    }

    #[test]
    fn codes_are_sorted_by_what_to_do() {
        for line in [
            "LOADING Redis is loading the dataset in memory",
            "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "CLUSTERDOWN The cluster is down",
            "ERR Script attempted to access a non local key in a cluster node",
            "NOREPLICAS Not enough good replicas to write.",
            "ERR max number of clients reached",
        ] {
            let Refusal::Later(error) = refusal(line) else {
                panic!("{line}")
            };
            assert!(error.is_unreachable());
            assert!(error.to_string().contains(line), "{error}");
        }
        for line in [
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "NOPERM this user has no permissions to run the 'evalsha' command",
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
            "MOVED 3999 127.0.0.1:6381",
            "ASK 3999 127.0.0.1:6381",
            "ERR unknown command 'EVALSHA'",
            "STRANGE and new",
            "",
        ] {
            let Refusal::No(error) = refusal(line) else {
                panic!("{line}")
            };
            assert!(error.is_server(), "{line}");
        }
        assert!(matches!(
            refusal("NOSCRIPT No matching script. Please use EVAL."),
            Refusal::NoScript
        ));
        assert!(matches!(
            refusal("READONLY You can't write against a read only replica."),
            Refusal::Elsewhere(_)
        ));
    }

    #[test]
    fn a_code_within_an_error_of_a_script_is_found() {
        let within = |inner: &str| {
            refusal(&format!(
                "ERR Error running script (call to f_6b1bf486c81ceb7edf3c093f4c48582e38c0e791): @user_script:12: @user_script: 12: {inner}"
            ))
        };
        let Refusal::No(error) = within("WRONGTYPE Operation against a key holding the wrong kind of value")
        else {
            panic!()
        };
        assert!(
            error.to_string().contains("relatch:1:{x} holds something else"),
            "{error}"
        );
        assert!(matches!(
            within("READONLY You can't write against a read only replica."),
            Refusal::Elsewhere(_)
        ));
        assert!(matches!(within("-LOADING Redis is loading"), Refusal::Later(_)));
        assert!(matches!(
            refusal("@user_script: 20: -READONLY You can't write against a read only replica."),
            Refusal::Elsewhere(_)
        ));
        assert!(matches!(within("attempt to index a nil value"), Refusal::No(_)));
    }

    #[test]
    fn what_is_denied_is_named_and_who_it_is_denied_to_is_not() {
        let run = "User keyring has no permissions to run the 'zrem' command";
        let of_script = "and the commands that docs/deployments.md lists";
        for (line, rule) in [
            (format!("NOPERM {run}"), "+zrem"),
            (
                format!("ERR ACL failure in script: {run} script: 104ae65d, on @user_script:1."),
                "+zrem",
            ),
            (
                "ERR ACL failure in script: No permissions to access a key script: 104ae65d".into(),
                KEYS,
            ),
            (
                "ERR ACL failure in script: No permissions to access a channel".into(),
                CHANNELS,
            ),
            ("NOPERM No permissions to access a key".into(), KEYS),
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments".into(),
                KEYS,
            ),
            (
                "NOPERM this user has no permissions to run the 'cluster|nodes' command".into(),
                "+cluster|nodes",
            ),
            (
                "ERR The user executing the script can't run this command or subcommand script: 1".into(),
                of_script,
            ),
            (
                "ERR The user executing the script can't publish to the channel mentioned in the command"
                    .into(),
                CHANNELS,
            ),
        ] {
            let Refusal::No(error) = refusal(&line) else {
                panic!("{line}")
            };
            let said = error.to_string();
            assert!(
                said.contains("(NOPERM)") && said.ends_with(rule),
                "{line}: {said}"
            );
            assert!(!said.contains("keyring"), "{said}");
        }
    }

    #[test]
    fn where_in_a_script_it_came_up_is_left_out() {
        let Refusal::No(error) = refusal(
            "WRONGTYPE Operation against a key holding the wrong kind of value script: c2164f95f4a7, on @user_script:1.",
        ) else {
            panic!()
        };
        assert!(!error.to_string().contains("user_script"), "{error}");
    }

    #[test]
    fn what_a_server_says_is_fit_to_print() {
        assert_eq!(printable("a\u{1b}[31m\nb"), "a [31m b");
        assert_eq!(printable(&"x".repeat(1000)).chars().count(), 241);
    }
}
