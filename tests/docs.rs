//! What the documentation names is there.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// All Rust sources below a folder, in one text.
fn sources(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// What stands between backquotes and could be the name of a test or of a claim.
fn named(text: &str) -> BTreeSet<&str> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| {
            name.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
        .collect()
}

#[test]
fn every_check_that_a_guarantee_rests_on_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    sources(&root.join("src"), &mut code);
    sources(&root.join("tests"), &mut code);
    let guarantees = fs::read_to_string(root.join("docs/guarantees.md")).unwrap();
    let rows: Vec<&str> = guarantees
        .lines()
        .filter(|line| line.starts_with("| G"))
        .collect();
    assert_eq!(rows.len(), 10, "a row for each guarantee");
    for row in rows {
        let (statement, rests_on) = row.trim_end_matches(" |").rsplit_once(" | ").unwrap();
        let (tests, claims) = rests_on.split_once("explored: ").unwrap_or((rests_on, ""));
        for test in named(tests) {
            assert!(
                code.contains(&format!("fn {test}(")),
                "{test:?}, on which rests: {statement}"
            );
        }
        for claim in named(claims) {
            assert!(
                code.contains(&format!("(\"{claim}\", {claim}),")) || claim == "liveness",
                "{claim:?}: {statement}"
            );
        }
        assert!(
            !named(rests_on).is_empty() || rests_on.contains("tests/"),
            "{statement}"
        );
    }
}

#[test]
fn every_test_that_answers_a_peers_failure_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    sources(&root.join("src"), &mut code);
    sources(&root.join("tests"), &mut code);
    let peers = fs::read_to_string(root.join("docs/peers.md")).unwrap();
    let mut seen = 0;
    for row in peers.lines().filter(|line| line.starts_with("| ")) {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        for test in named(last).into_iter().filter(|name| name.contains('_')) {
            assert!(code.contains(&format!("fn {test}(")), "{test:?} in {row}");
            seen += 1;
        }
    }
    assert!(seen >= 25, "{seen} tests are named");
}

#[test]
fn every_peer_that_is_measured_has_a_paragraph() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/benchmarks.md")).unwrap();
    let (_, said) = page.split_once("### What each does not do").unwrap();
    let peers = BTreeSet::from([
        "distkit",
        "rds_lock",
        "redisson",
        "redisson-plain",
        "rlock",
        "rslock",
    ]);
    // The published crate is without it.
    if let Ok(driver) = fs::read_to_string(root.join("benches/peers/src/main.rs")) {
        let crates = driver
            .split("subject(\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap());
        let java = driver
            .split("let java = ")
            .nth(1)
            .unwrap()
            .lines()
            .next()
            .unwrap();
        let java = java.split('"').skip(1).step_by(2);
        let measured: BTreeSet<&str> = crates.chain(java).collect();
        let besides = BTreeSet::from(["floor", "relatch"]);
        assert_eq!(measured, &peers | &besides);
    }
    for peer in peers {
        let paragraph = said
            .lines()
            .find(|line| line.starts_with(&format!("**{peer}** (")));
        let paragraph = paragraph.unwrap_or_else(|| panic!("{peer} has no paragraph"));
        assert!(
            paragraph.contains("does not"),
            "what {peer} does not do: {paragraph}"
        );
    }
    for (page, name) in [("benchmarks", "peers"), ("capacity", "capacity")] {
        let text = fs::read_to_string(root.join(format!("docs/{page}.md"))).unwrap();
        let begin = text.find(&format!("<!-- {name}: begin"));
        let end = text.find(&format!("<!-- {name}: end -->"));
        assert!(
            begin.is_some() && begin < end,
            "docs/{page}.md has no place for {name}'s numbers"
        );
    }
}

#[test]
fn every_test_that_the_page_of_the_command_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    sources(&root.join("tests/command"), &mut code);
    let page = fs::read_to_string(root.join("docs/commands.md")).unwrap();
    let tests: Vec<&str> = named(&page).into_iter().filter(|name| name.len() > 20).collect();
    for test in &tests {
        assert!(code.contains(&format!("fn {test}(")), "{test:?}");
    }
    assert!(tests.len() > 5, "{tests:?}");
}
