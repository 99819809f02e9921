//! What an ACL may take away, and what is said then.

use super::*;

/// What `docs/deployments.md` gives as enough.
fn least() -> Vec<String> {
    let page = include_str!("../../../../docs/deployments.md");
    let rule = page
        .lines()
        .find_map(|line| line.strip_prefix("ACL SETUSER relatch "))
        .expect("the page has a rule");
    rule.split(' ').map(str::to_owned).collect()
}

fn allow(server: &Server, rules: &[String]) {
    let mut words = vec!["ACL", "SETUSER", "ann"];
    words.extend(rules.iter().map(String::as_str));
    let _: () = server.ask(&words);
}

fn url(server: &Server) -> String {
    format!("redis://ann:pw@127.0.0.1:{}", server.port)
}

fn with(rules: &[String], more: &[&str]) -> Vec<String> {
    let mut all = vec!["reset".to_owned(), "on".into(), ">pw".into()];
    let rules = rules
        .iter()
        .filter(|rule| !rule.starts_with('>') && *rule != "on" && *rule != "reset");
    all.extend(rules.cloned());
    all.extend(more.iter().map(|rule| (*rule).to_owned()));
    all
}

#[tokio::test]
async fn the_least_rights_are_enough_and_each_that_is_missing_is_named() {
    let server = Server::start(&[]);
    let least = least();
    allow(&server, &with(&least, &[]));
    let backend = linked(quick(&url(&server))).await;
    works(&backend).await;
    assert_eq!(backend.remarks(), Vec::<String>::new());
    assert!(backend.pushes());
    drop(backend);

    // Without which it works all the same: the next test. Without PING nothing changes.
    let spared = [
        "+subscribe",
        "+publish",
        "+info",
        "+evalsha",
        "+eval",
        "+script|load",
        "+ping",
        "+wait",
        "+select",
    ];
    let mut needed = 0;
    for rule in &least {
        if !rule.starts_with('+') || spared.contains(&rule.as_str()) {
            continue;
        }
        needed += 1;
        let without = rule.replacen('+', "-", 1);
        allow(&server, &with(&least, &[&without]));
        let error = first_error(&url(&server)).await;
        assert!(error.is_server(), "{rule}: {error}");
        assert!(
            error.to_string().contains(&format!("ACL SETUSER <user> {rule}")),
            "{rule}: {error}"
        );
        assert!(!error.to_string().contains("ann"), "{error}");
    }
    assert!(needed > 15, "{least:?}");

    allow(&server, &with(&least, &["resetkeys", "~other:*"]));
    let error = first_error(&url(&server)).await;
    assert!(
        error.is_server() && error.to_string().contains("ACL SETUSER <user> ~relatch:1:*"),
        "{error}"
    );
}

#[tokio::test]
async fn without_messages_it_polls_and_says_so_once() {
    let server = Server::start(&[]);
    let least = least();
    for taken in [
        &["resetchannels"][..],
        &["-subscribe"],
        &["-publish"],
        &["-publish", "-subscribe"],
    ] {
        allow(&server, &with(&least, taken));
        let backend = linked(quick(&url(&server))).await;
        works(&backend).await;
        assert!(!backend.pushes(), "{taken:?}");
        let remarks = backend.remarks();
        assert!(
            remarks.len() == 1 && remarks[0].contains("+subscribe +publish &relatch:1:client:*"),
            "{taken:?}: {remarks:?}"
        );
        assert!(
            backend.linker().remember(&remarks).is_empty(),
            "it is nothing new"
        );
        assert!(!backend.linker().live().await.unwrap().trust);
    }
}

#[tokio::test]
async fn either_way_to_run_a_script_will_do() {
    let server = Server::start(&[]);
    let least = least();

    // Only by hash.
    allow(&server, &with(&least, &["-eval"]));
    let backend = linked(quick(&url(&server))).await;
    works(&backend).await;
    assert!(backend.remarks().is_empty());
    // The server forgets: the call brings its script again, on the same link.
    let _: () = server.ask(&["SCRIPT", "FLUSH"]);
    works(&backend).await;
    assert_eq!(*backend.generation().borrow(), 1);
    drop(backend);
    drop(linked(quick(&url(&server))).await);

    // Only by hash, and somebody else has brought them.
    allow(&server, &with(&least, &["-eval", "-script|load"]));
    works(&*linked(quick(&url(&server))).await).await;
    let _: () = server.ask(&["SCRIPT", "FLUSH"]);
    let error = first_error(&url(&server)).await;
    assert!(
        error.is_server() && error.to_string().contains("ACL SETUSER <user> +script|load"),
        "{error}"
    );

    // Only by source.
    for taken in [&["-evalsha"][..], &["-evalsha", "-script|load"]] {
        allow(&server, &with(&least, taken));
        let backend = linked(quick(&url(&server))).await;
        works(&backend).await;
        let remarks = backend.remarks();
        assert!(
            remarks.len() == 1 && remarks[0].contains("+evalsha +script|load"),
            "{remarks:?}"
        );
        assert_eq!(*backend.generation().borrow(), 1);
    }

    allow(&server, &with(&least, &["-evalsha", "-eval"]));
    let error = first_error(&url(&server)).await;
    assert!(
        error.is_server() && error.to_string().contains("+evalsha +script|load, or +eval"),
        "{error}"
    );
}

#[tokio::test]
async fn without_info_it_works_and_says_what_was_not_looked_at() {
    let server = Server::start(&[]);
    allow(&server, &with(&least(), &["-info"]));
    let backend = linked(quick(&url(&server))).await;
    works(&backend).await;
    let remarks = backend.remarks();
    assert!(remarks.len() == 1 && remarks[0].contains("+info"), "{remarks:?}");
    // A replica is noticed all the same.
    let _: () = server.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    let error = first_error(&url(&server)).await;
    assert!(
        error.is_unreachable() && error.to_string().contains("replica"),
        "{error}"
    );
}

#[tokio::test]
async fn a_right_that_is_taken_away_while_linked_is_named_by_the_next_call() {
    let server = Server::start(&[]);
    let least = least();
    allow(&server, &with(&least, &[]));
    let backend = linked(quick(&url(&server))).await;
    works(&backend).await;
    // Redis tells which command it was that a script may not call only since 7.2.
    let unnamed = "~relatch:1:* &relatch:1:client:* and the commands that docs/deployments.md lists";
    for (taken, rule, or) in [
        ("-evalsha", "+evalsha", "+evalsha"),
        ("-hmget", "+hmget", unnamed),
        ("resetkeys", "~relatch:1:*", "~relatch:1:*"),
    ] {
        allow(&server, &with(&least, &[]));
        works(&backend).await;
        allow(&server, &with(&least, &[taken]));
        let outcome = soon(backend.call(&look("x"))).await;
        let Err(Failure::No(error)) = outcome else {
            panic!("{outcome:?}")
        };
        let said = |rule: &str| error.to_string().ends_with(&format!("ACL SETUSER <user> {rule}"));
        assert!(said(rule) || said(or), "{error}");
        assert!(!error.to_string().contains("ann"), "{error}");
    }
}

#[tokio::test]
async fn a_memory_policy_that_may_evict_locks_is_remarked() {
    let server = Server::start(&["--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"]);
    let backend = linked(quick(&server.url())).await;
    works(&backend).await;
    let remarks = backend.remarks();
    assert!(
        remarks.len() == 1 && remarks[0].contains("noeviction"),
        "{remarks:?}"
    );
    let _: () = server.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let _: u64 = server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
    generation_after(&backend, 1).await;
    assert!(backend.remarks().is_empty());
}

#[tokio::test]
async fn asking_for_rights_leaves_nothing_behind() {
    let server = Server::start(&[]);
    let backend = linked(quick(&server.url())).await;
    works(&backend).await;
    let keys: Vec<String> = server.ask(&["KEYS", "*"]);
    assert!(keys.is_empty(), "{keys:?}");
}
