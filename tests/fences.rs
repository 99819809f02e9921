//! Fences that bite: a write that comes late is refused by the resource, whatever its writer believes.
//!
//! On the real things: a Redis server, SQLite, PostgreSQL. What is shown is what the cookbook says.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use relatch::{FencedScript, LostCause, Relatch, ScriptValue};
use support::{BOUND, Direction, Proxy, RedisCluster, RedisServer, eventually_async, eventually_blocking};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn soon<T>(future: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(BOUND, future.into_future())
        .await
        .expect("it came within the bound")
}

// -- Redis ---------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_write_that_arrives_after_its_hold_was_lost_is_not_made() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    // It believes in its link for longer than its lease lasts.
    let slow = Relatch::builder()
        .url(proxy.url())
        .lease(ms(400))
        .response_timeout(BOUND)
        .idle_ping(BOUND)
        .connect()
        .await
        .unwrap();
    let quick = Relatch::connect(&server.url()).await.unwrap();
    let set = FencedScript::new("return redis.call('SET', KEYS[1], ARGV[1])");

    let lock = slow.rwlock("account").unwrap();
    let key = format!("{}:balance", lock.hash_tag());
    let held = lock.write().await.unwrap();
    let told = soon(held.run(&set).key(&*key).arg("10")).await.unwrap();
    assert_eq!(told.as_str(), Some("OK"));

    // Sent while it is held; on its way for longer than that.
    proxy.silence(Direction::ToServer);
    assert!(held.is_held());
    let late = tokio::spawn(held.run(&set).key(&*key).arg("late").into_future());
    let next = soon(quick.rwlock("account").unwrap().write()).await.unwrap();
    soon(next.run(&set).key(&*key).arg("20")).await.unwrap();
    proxy.heal();
    let error = soon(late).await.unwrap().unwrap_err();
    assert!(error.is_lost(), "{error}");
    assert_eq!(server.reply(&["GET", &key]).text(), "20");
    // And what is known to be lost is not even sent.
    let error = soon(held.run(&set).key(&*key).arg("later")).await.unwrap_err();
    assert_eq!(error.lost_cause(), Some(LostCause::Lapsed), "{error}");
}

#[tokio::test]
async fn a_script_runs_under_a_hold_of_every_mode_with_its_fence() {
    let server = RedisServer::start();
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let lock = relatch.rwlock("a {name} of 100 %").unwrap();
    assert_eq!(lock.hash_tag(), "{a %7Bname%7D of 100 %25}");
    let echo = FencedScript::new("return { FENCE, #KEYS, #ARGV, KEYS[2] or false, ARGV[1] or false }");

    let write = lock.write().await.unwrap();
    let fence = write.fence();
    let value = soon(write.run(&echo).key("a").key("b").arg("c")).await.unwrap();
    let text = |text: &str| ScriptValue::Text(text.into());
    assert_eq!(
        value,
        ScriptValue::List(vec![
            text(&fence.to_string()),
            ScriptValue::Int(2),
            ScriptValue::Int(1),
            text("b"),
            text("c")
        ])
    );
    let upgradable = write.downgrade_to_upgradable().await.unwrap();
    soon(upgradable.run(&echo)).await.unwrap();
    let labelled = lock.read().label("with | and , in it").await.unwrap();
    soon(labelled.run(&echo)).await.unwrap();
    let owner = relatch::Owner::new();
    let named = lock.read().owner(&owner).await.unwrap();
    let inner = lock.read().owner(&owner).await.unwrap();
    soon(inner.run(&echo)).await.unwrap();
    soon(named.run(&echo)).await.unwrap();
    let lone = lock.read().await.unwrap();
    soon(lone.run(&echo)).await.unwrap();
    drop(upgradable);
    let mutex = relatch.mutex("m").unwrap().lock().await.unwrap();
    assert!(
        soon(mutex.run(&FencedScript::new("return")))
            .await
            .unwrap()
            .is_nil()
    );
}

/// As the server sees it: past its deadline, revoked, and gone.
#[tokio::test]
async fn a_hold_that_does_not_stand_runs_nothing_and_says_why() {
    let server = RedisServer::start();
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let lock = relatch.rwlock("it").unwrap();
    let count = FencedScript::new("return redis.call('INCR', KEYS[1])");
    let key = format!("{}:count", lock.hash_tag());
    let run = async |guard: &relatch::WriteGuard| soon(guard.run(&count).key(&*key)).await;

    let guard = lock.write().await.unwrap();
    assert_eq!(run(&guard).await.unwrap(), ScriptValue::Int(1));
    // Somebody has taken the whole lock away, and its client has not heard of it.
    for key in server.keys() {
        if key.starts_with("relatch:1:{it}") {
            server.reply(&["DEL", &key]);
        }
    }
    let error = run(&guard).await.unwrap_err();
    assert_eq!(error.lost_cause(), Some(LostCause::Forgotten), "{error}");
    drop(guard);

    // A deadline that is over, which nobody has looked at yet.
    let guard = lock.write().await.unwrap();
    let top = server.reply(&["HGET", "relatch:1:{it}", "top"]).text();
    let (head, tail) = top.rsplit_once(',').unwrap();
    let (head, _) = head.rsplit_once(',').unwrap();
    server.reply(&["HSET", "relatch:1:{it}", "top", &format!("{head},1000,{tail}")]);
    let error = run(&guard).await.unwrap_err();
    assert_eq!(error.lost_cause(), Some(LostCause::Lapsed), "{error}");
    // Being taken away.
    let revoked = top.replacen(",w,", ",W,", 1);
    assert_ne!(revoked, top);
    server.reply(&["HSET", "relatch:1:{it}", "top", &revoked]);
    let error = run(&guard).await.unwrap_err();
    assert_eq!(error.lost_cause(), Some(LostCause::Revoked), "{error}");
    server.reply(&["HSET", "relatch:1:{it}", "top", &top]);
    assert_eq!(
        run(&guard).await.unwrap(),
        ScriptValue::Int(2),
        "only the first and this"
    );
}

#[tokio::test]
async fn a_script_that_fails_says_what_redis_says_and_leaves_the_link_alone() {
    let server = RedisServer::start();
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let held = relatch.rwlock("it").unwrap().write().await.unwrap();
    for (body, word) in [
        ("return redis.call('NO_SUCH_THING')", "nknown"),
        ("this is not Lua", "ompil"),
        ("error('as asked for')", "as asked for"),
        // What it returns as an error is one.
        ("return redis.pcall('NO_SUCH_THING')", "nknown"),
        ("return redis.error_reply('no stock')", "stock"),
        // In which line of it.
        ("\n\n  error('as asked for') -- here", "user_script:3:"),
        ("local a = 1\nthis is not Lua", "user_script:2:"),
    ] {
        let error = soon(held.run(&FencedScript::new(body))).await.unwrap_err();
        assert!(error.is_server() && error.to_string().contains(word), "{error}");
    }
    let connections = || {
        let received = server.info("stats", "total_connections_received");
        received.unwrap().parse::<u64>().unwrap()
    };
    let before = connections();
    soon(held.run(&FencedScript::new("return 1"))).await.unwrap();
    assert_eq!(connections(), before + 1, "only the one that asks");
    assert!(held.is_held());
    held.release().await.unwrap();
    assert_eq!(server.info("clients", "connected_clients").as_deref(), Some("3"),);

    let embedded = Relatch::embedded();
    let held = embedded.rwlock("it").unwrap().write().wait().unwrap();
    let error = held.run(&FencedScript::new("return 1")).wait().unwrap_err();
    assert!(error.is_invalid(), "{error}");
}

#[tokio::test]
async fn a_script_whose_answer_is_lost_is_unknown_and_is_not_sent_twice() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    let relatch = Relatch::connect(&proxy.url()).await.unwrap();
    let lock = relatch.rwlock("it").unwrap();
    let key = format!("{}:count", lock.hash_tag());
    let held = lock.write().await.unwrap();
    let count = FencedScript::new("return redis.call('INCR', KEYS[1])");
    soon(held.run(&count).key(&*key)).await.unwrap();
    let ours = key.clone();
    proxy.drop_reply_then_cut(move |words| words.contains(&ours));
    let error = soon(held.run(&count).key(&*key)).await.unwrap_err();
    assert!(
        error.is_unreachable() && error.to_string().contains("not known"),
        "{error}"
    );
    assert_eq!(server.reply(&["GET", &key]).text(), "2");
    eventually_async(BOUND, "the link is back", async || {
        held.run(&count)
            .key(&*key)
            .await
            .is_ok_and(|n| n == ScriptValue::Int(3))
    })
    .await;
}

/// Who may bring a script in which way; and what is said where it is none.
#[tokio::test]
async fn a_script_is_brought_by_whichever_way_is_open_and_else_the_right_is_named() {
    let server = RedisServer::start();
    let rules = |more: &[&str]| {
        let mut words = vec!["ACL", "SETUSER", "ann", "reset", "on", ">pw", "~*", "&*", "+@all"];
        words.extend(more);
        server.cli(&words);
    };
    let url = format!("redis://ann:pw@127.0.0.1:{}", server.port());
    for (n, (rights, open)) in [
        (&["-eval"] as &[&str], true),
        (&["-script"], true),
        (&["-evalsha", "-script"], true),
        (&["-eval", "-script"], false),
    ]
    .into_iter()
    .enumerate()
    {
        rules(rights);
        // That one brings ours, where this one may not.
        let all = Relatch::connect(&server.url()).await.unwrap();
        let relatch = Relatch::connect(&url).await.unwrap();
        let lock = relatch.rwlock("it").unwrap();
        let key = format!("{}:count", lock.hash_tag());
        let held = lock.write().await.unwrap();
        let count = FencedScript::new(&format!("return redis.call('INCRBY', KEYS[1], {n})"));
        if open {
            for _ in 0..2 {
                server.reply(&["DEL", &key]);
                let told = soon(held.run(&count).key(&*key)).await.unwrap();
                assert_eq!(told.as_int(), Some(n as i64), "{rights:?}");
                // It is forgotten with all others.
                server.reply(&["SCRIPT", "FLUSH"]);
            }
        } else {
            let error = soon(held.run(&count).key(&*key)).await.unwrap_err();
            let said = error.to_string();
            assert!(
                error.is_server() && said.contains("ACL SETUSER <user> +script"),
                "{said}"
            );
            assert!(!said.contains("of yours"), "{said}");
        }
        drop(held);
        relatch.close().await.unwrap();
        all.close().await.unwrap();
    }
    // The keys are the user's.
    rules(&["resetkeys", "~relatch:1:*"]);
    let relatch = Relatch::connect(&url).await.unwrap();
    let held = relatch.rwlock("it").unwrap().write().await.unwrap();
    let set = FencedScript::new("return redis.call('SET', KEYS[1], 1)");
    let error = soon(held.run(&set).key("left:{it}")).await.unwrap_err();
    assert!(
        error.is_server() && error.to_string().contains("ACL SETUSER <user> ~left:{it}"),
        "{error}"
    );
}

/// What a script says in the server's words is not what the server says: it has run, and does not run again.
#[tokio::test]
async fn a_script_that_speaks_as_a_server_would_runs_once() {
    let server = RedisServer::start();
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let held = relatch.rwlock("it").unwrap().write().await.unwrap();
    for (n, said) in [
        "NOSCRIPT No matching script. Please use EVAL.",
        "MASTERDOWN says the shop",
        "MOVED 1 127.0.0.1:1",
        "NOPERM to sell",
    ]
    .iter()
    .enumerate()
    {
        let script = FencedScript::new(&format!(
            "redis.call('INCR', KEYS[1]) error({{ err = '{said}' }})"
        ));
        let key = format!("count:{{it}}:{n}");
        // Known to the server, and brought to it.
        for times in ["1", "2"] {
            let error = soon(held.run(&script).key(&*key)).await.unwrap_err();
            assert!(
                error.is_server() && error.to_string().contains("yours"),
                "{error}"
            );
            assert_eq!(server.reply(&["GET", &key]).text(), times, "{said}");
        }
    }
}

#[tokio::test]
async fn what_a_script_can_not_help_is_told_as_what_it_is() {
    let server = RedisServer::start();
    let user = "ACL SETUSER keyring on >secret resetkeys ~relatch:1:* ~left:* +@all -incr";
    server.reply(&user.split(' ').collect::<Vec<_>>());
    let url = format!("redis://keyring:secret@127.0.0.1:{}", server.port());
    let relatch = Relatch::connect(&url).await.unwrap();
    let held = relatch.rwlock("it").unwrap().write().await.unwrap();
    let run = async |body: &str| {
        let script = FencedScript::new(body);
        let run = held.run(&script).key("left:{it}");
        let error = soon(run).await.unwrap_err();
        assert!(error.is_server(), "{error}");
        let said = error.to_string();
        assert!(
            said.contains("a script of yours failed") && !said.contains("keyring"),
            "{said}"
        );
        said
    };
    for call in ["call", "pcall"] {
        let said = run(&format!("return redis.{call}('INCR', KEYS[1])")).await;
        assert!(said.contains("(NOPERM): ACL SETUSER <user> +"), "{said}");
        let said = run(&format!("return redis.{call}('GET', 'right:{{it}}')")).await;
        assert!(said.contains("(NOPERM): ACL SETUSER <user> ~"), "{said}");
    }
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let said = run("return redis.call('SET', KEYS[1], 1)").await;
    assert!(said.contains("raise its maxmemory"), "{said}");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
}

#[tokio::test]
async fn a_script_takes_more_keys_and_arguments_than_fit_on_a_stack() {
    let server = RedisServer::start();
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let held = relatch.rwlock("it").unwrap().write().await.unwrap();
    let script = FencedScript::new("return { #KEYS, KEYS[1], KEYS[#KEYS], #ARGV, ARGV[1], ARGV[#ARGV] }");
    let mut run = held.run(&script);
    for n in 1..=10_000 {
        run = run.key(format!("key {n}")).arg(format!("argument {n}"));
    }
    let text = |text: &str| ScriptValue::Text(text.into());
    let (many, first, last) = (ScriptValue::Int(10_000), 1, 10_000);
    assert_eq!(
        soon(run).await.unwrap(),
        ScriptValue::List(vec![
            many.clone(),
            text(&format!("key {first}")),
            text(&format!("key {last}")),
            many,
            text(&format!("argument {first}")),
            text(&format!("argument {last}")),
        ])
    );
}

/// What a server says of itself is not the script's fault.
#[tokio::test]
async fn a_server_that_can_not_just_now_is_asked_again_and_runs_it_once() {
    let server = RedisServer::start();
    let server = std::sync::Arc::new(server);
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let hasty = Relatch::builder()
        .url(server.url())
        .patience(ms(500))
        .connect()
        .await
        .unwrap();
    let count = FencedScript::new("return redis.call('INCR', KEYS[1])");
    let (one, two) = (relatch.rwlock("it").unwrap(), hasty.rwlock("that").unwrap());
    let (held, brief) = (one.write().await.unwrap(), two.write().await.unwrap());
    soon(held.run(&count).key("{it}")).await.unwrap();
    soon(brief.run(&count).key("{that}")).await.unwrap();
    let mut times = 1;
    for (word, begin, end) in [
        (
            "busy with a slow script",
            &[&["CONFIG", "SET", "lua-time-limit", "20"] as &[&str]] as &[&[&str]],
            &[&["SCRIPT", "KILL"] as &[&str]] as &[&[&str]],
        ),
        (
            "replica that has lost its primary",
            &[
                &["CONFIG", "SET", "replica-serve-stale-data", "no"],
                &["REPLICAOF", "127.0.0.1", "1"],
            ],
            &[
                &["REPLICAOF", "NO", "ONE"],
                &["CONFIG", "SET", "replica-serve-stale-data", "yes"],
            ],
        ),
    ] {
        for words in begin {
            server.cli(words);
        }
        if word.contains("busy") {
            let slow = server.clone();
            std::thread::spawn(move || slow.try_reply(&["EVAL", "while true do end", "0"]));
            eventually_blocking(BOUND, "it is busy", || server.reply(&["PING"]).is_error());
        }
        // Its patience may end in the very moment in which it asks again: then it can't know.
        eventually_async(BOUND, "it is known that it was not run", async || {
            let error = soon(brief.run(&count).key("{that}")).await.unwrap_err();
            let said = error.to_string();
            assert!(error.is_unreachable() && said.contains(word), "{said}");
            assert!(!said.contains("yours"), "{said}");
            !said.contains("not known")
        })
        .await;
        let mut run = held.run(&count).key("{it}").into_future();
        let early = tokio::time::timeout(ms(60), &mut run).await;
        assert!(early.is_err(), "it waits: {word}: {early:?}");
        for words in end {
            server.cli(words);
        }
        times += 1;
        assert_eq!(soon(run).await.unwrap().as_int(), Some(times), "{word}");
    }
    assert_eq!(server.reply(&["GET", "{that}"]).text(), "1");

    // Before it could write anything. What else it does, only its author knows: it is not run again.
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    let error = soon(held.run(&count).key("{it}")).await.unwrap_err();
    let said = error.to_string();
    assert!(
        error.is_unreachable() && said.contains("read-only replica"),
        "{said}"
    );
    assert!(!said.contains("yours") && !said.contains("not known"), "{said}");
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    let told = soon(held.run(&count).key("{it}")).await.unwrap();
    assert_eq!(told.as_int(), Some(times + 1));
}

#[tokio::test]
async fn a_script_of_several_names_runs_while_all_of_them_are_held() {
    let server = RedisServer::start();
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let (a, b) = (
        relatch.rwlock("{bank}a").unwrap(),
        relatch.rwlock("{bank}b").unwrap(),
    );
    let both = soon(relatch.multi((b.read(), a.write()))).await.unwrap();
    let echo =
        FencedScript::new("redis.call('INCR', KEYS[1]) return { FENCE, FENCES[2], #FENCES, #KEYS, ARGV[1] }");
    let run = async || soon(both.run(&echo).key("{bank}count").arg("x")).await;
    let text = |text: &str| ScriptValue::Text(text.into());
    let fence = |of: &str| text(&both.fence(of).unwrap().to_string());
    assert_eq!(
        run().await.unwrap(),
        ScriptValue::List(vec![
            fence("{bank}a"),
            fence("{bank}b"),
            ScriptValue::Int(2),
            ScriptValue::Int(1),
            text("x")
        ])
    );
    assert_eq!(
        both.stamp("{bank}b").map(relatch::Stamp::fence),
        both.fence("{bank}b")
    );
    assert!(both.stamp("{bank}c").is_none());
    assert!(b.validate(both.stamp("{bank}b").unwrap()).await.unwrap());
    // Somebody takes the second away, and its client has not heard of it.
    for key in server.keys() {
        if key.starts_with("relatch:1:{bank}") && key.contains("=b") {
            server.reply(&["DEL", &key]);
        }
    }
    let error = run().await.unwrap_err();
    assert!(
        error.is_lost() && error.to_string().contains("{bank}b"),
        "{error}"
    );
    assert_eq!(server.reply(&["GET", "{bank}count"]).text(), "1");
    let none = soon(relatch.multi(Vec::<relatch::Part>::new())).await.unwrap();
    assert!(soon(none.run(&echo)).await.unwrap_err().is_invalid());
}

#[tokio::test]
async fn a_script_runs_on_the_node_of_a_cluster_that_has_the_lock() {
    let cluster = RedisCluster::start(3);
    for node in cluster.nodes() {
        // Neither may send a script with its call.
        node.cli(&["ACL", "SETUSER", "default", "-eval"]);
    }
    let relatch = Relatch::connect(&cluster.url()).await.unwrap();
    let count = FencedScript::new("return redis.call('INCR', KEYS[1])");
    for master in 0..3 {
        let lock = relatch.rwlock(&cluster.name_on(master, "it")).unwrap();
        let key = format!("{}:count", lock.hash_tag());
        let held = soon(lock.write()).await.unwrap();
        for n in 1..=2 {
            let told = soon(held.run(&count).key(&*key)).await.unwrap();
            assert_eq!(told.as_int(), Some(n));
            // As one that takes over: it does not know the script.
            cluster.node(master).cli(&["SCRIPT", "FLUSH"]);
        }
        let error = soon(held.run(&count).key("elsewhere")).await.unwrap_err();
        assert!(
            error.is_server() && error.to_string().contains(&lock.hash_tag()),
            "{error}"
        );
    }
    // A slot that moves is followed, and its new node learns the script.
    let lock = relatch.rwlock(&cluster.name_on(0, "moving")).unwrap();
    let key = format!("{}:count", lock.hash_tag());
    let held = soon(lock.write()).await.unwrap();
    assert_eq!(soon(held.run(&count).key(&*key)).await.unwrap().as_int(), Some(1));
    let slot = cluster.slot_of(&key);
    cluster.begin_move(slot, 0, 1);
    cluster.move_keys(slot, 0, 1, 100);
    // On its way: neither node runs it, and both say so.
    let mut run = held.run(&count).key(&*key).into_future();
    let early = tokio::time::timeout(ms(60), &mut run).await;
    assert!(early.is_err(), "{early:?}");
    cluster.end_move(slot, 1);
    assert_eq!(soon(run).await.unwrap().as_int(), Some(2));
    // Of several names: where they share a slot.
    let names = ["one", "two"].map(|of| relatch.rwlock(&format!("{{tag}}{of}")).unwrap());
    let both = soon(relatch.multi(names.each_ref().map(relatch::RwLock::write)))
        .await
        .unwrap();
    assert_eq!(
        soon(both.run(&count).key("{tag}:n")).await.unwrap().as_int(),
        Some(1)
    );
    let apart = [0, 1].map(|on| relatch.rwlock(&cluster.name_on(on, "apart")).unwrap());
    let apart = soon(relatch.multi(apart.each_ref().map(relatch::RwLock::write)))
        .await
        .unwrap();
    let error = soon(apart.run(&count).key("{tag}:n")).await.unwrap_err();
    assert!(
        error.is_invalid() && error.to_string().contains("{order:17}"),
        "{error}"
    );
}

// -- SQL -----------------------------------------------------------------------------------------------------------------

/// What any database runs: nothing happens, and it says 0 rows, when somebody with a greater fence has been here.
fn fenced_update(balance: i64, fence: u64) -> String {
    format!("UPDATE account SET balance = {balance}, fence = {fence} WHERE id = 1 AND fence <= {fence}")
}

const SCHEMA: &str =
    "CREATE TABLE account (id INTEGER PRIMARY KEY, balance BIGINT NOT NULL, fence BIGINT NOT NULL DEFAULT 0);
    INSERT INTO account (id, balance) VALUES (1, 100);";

/// `update` tells how many rows it changed.
fn late_writes_are_refused(update: impl Fn(&str) -> u64, balance: impl Fn() -> i64) {
    let relatch = Relatch::embedded();
    let lock = relatch.rwlock("account").unwrap();
    let slow = lock.write().wait().unwrap();
    assert_eq!(update(&fenced_update(90, slow.fence())), 1);
    assert_eq!(
        update(&fenced_update(80, slow.fence())),
        1,
        "as often as it likes"
    );
    // Its process stands still here. The lock goes on.
    relatch.block_on(relatch.revoke("account")).unwrap();
    let next = lock.write().wait().unwrap();
    assert_eq!(update(&fenced_update(50, next.fence())), 1);
    assert_eq!(update(&fenced_update(0, slow.fence())), 0, "too late");
    assert_eq!(balance(), 50);
}

fn output(mut command: Command) -> String {
    let shown = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{shown}: {error}: tests/run installs it"));
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(
        output.status.success(),
        "{shown}: {said} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

#[test]
fn sqlite_refuses_a_late_write() {
    let folder = tempfile::tempdir().unwrap();
    let sql = |statement: &str| {
        let mut sqlite = Command::new("sqlite3");
        sqlite.arg(folder.path().join("it.db")).arg(statement);
        output(sqlite)
    };
    sql(SCHEMA);
    late_writes_are_refused(
        |update| sql(&format!("{update}; SELECT changes();")).parse().unwrap(),
        || sql("SELECT balance FROM account").parse().unwrap(),
    );
}

#[test]
fn postgresql_refuses_a_late_write() {
    let server = postgres::Server::start();
    server.sql(SCHEMA);
    late_writes_are_refused(
        |update| {
            let tag = server.sql(update);
            tag.strip_prefix("UPDATE ").unwrap().parse().unwrap()
        },
        || server.sql("SELECT balance FROM account").parse().unwrap(),
    );
}

#[test]
fn postgresql_leaves_nothing_behind_also_when_the_test_panics() {
    for panics in [false, true] {
        let (tell, told) = std::sync::mpsc::channel();
        let test = std::thread::spawn(move || {
            let server = postgres::Server::start();
            tell.send((server.folder().to_owned(), server.processes()))
                .unwrap();
            if panics {
                std::panic::resume_unwind(Box::new("as asked for"));
            }
        });
        let (folder, processes) = told.recv().unwrap();
        assert!(processes.len() > 3, "{processes:?}");
        assert_eq!(test.join().is_err(), panics);
        assert!(!folder.exists(), "{folder:?}");
        // The one that asked is among them, and goes by itself.
        eventually_blocking(BOUND, "none of them is left", || {
            processes
                .iter()
                .all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
        });
    }
}

/// A PostgreSQL server of the test's own, on a socket in its own folder.
mod postgres {
    use super::*;
    use rustix::process::Signal;
    use std::os::unix::fs::chown;
    use std::os::unix::process::CommandExt as _;
    use std::path::PathBuf;
    use std::time::Instant;
    use support::child::{Process, command};

    /// It refuses to run as root: then it is nobody.
    const NOBODY: u32 = 65_534;

    pub(crate) struct Server {
        process: Process,
        folder: tempfile::TempDir,
    }

    impl Drop for Server {
        /// In order, so that none of its processes outlives it, nor its shared memory; a test that panics comes by here as well.
        fn drop(&mut self) {
            // Fast: it disconnects its clients. After that it is told to drop everything, and then it is killed.
            for signal in [Signal::INT, Signal::QUIT] {
                self.process.signal(signal);
                let until = Instant::now() + BOUND;
                while self.process.ended().is_none() && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    /// Debian keeps the server's programs out of the PATH.
    fn program(name: &str) -> PathBuf {
        let on_path = std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .collect::<Vec<_>>();
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
        on_path
            .into_iter()
            .chain(versions.flatten().map(|version| version.path().join("bin")))
            .map(|folder| folder.join(name))
            .find(|program| program.is_file())
            .unwrap_or_else(|| panic!("no {name} found: tests/run installs it"))
    }

    fn as_nobody(command: &mut Command) {
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
    }

    impl Server {
        pub(crate) fn start() -> Self {
            // Short: a socket's path is no longer than 107 bytes.
            let folder = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap();
            if rustix::process::geteuid().is_root() {
                chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
            }
            let data = folder.path().join("data");
            let mut initdb = Command::new(program("initdb"));
            initdb
                .args([
                    "--auth=trust",
                    "--username=relatch",
                    "--no-sync",
                    "--locale=C",
                    "-D",
                ])
                .arg(&data)
                .current_dir(folder.path());
            as_nobody(&mut initdb);
            output(initdb);
            let mut postgres = command(program("postgres"));
            postgres
                .args([
                    "-c",
                    "listen_addresses=",
                    "-c",
                    "fsync=off",
                    "-c",
                    "shared_buffers=8MB",
                    "-k",
                ])
                .arg(folder.path())
                .arg("-D")
                .arg(&data)
                .current_dir(folder.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            as_nobody(&mut postgres);
            let process = Process::spawn(postgres).unwrap();
            let server = Self { process, folder };
            eventually_blocking(BOUND, "PostgreSQL answers", || {
                server
                    .psql("SELECT 1")
                    .output()
                    .is_ok_and(|output| output.status.success())
            });
            server
        }

        fn psql(&self, statement: &str) -> Command {
            let mut psql = Command::new(program("psql"));
            psql.args(["-X", "-A", "-t", "-U", "relatch", "-d", "postgres", "-h"])
                .arg(self.folder.path())
                .args(["-c", statement]);
            psql
        }

        pub(crate) fn sql(&self, statement: &str) -> String {
            output(self.psql(statement))
        }

        pub(crate) fn folder(&self) -> &std::path::Path {
            self.folder.path()
        }

        /// All that it runs: the server itself, and its children.
        pub(crate) fn processes(&self) -> Vec<u32> {
            let statement = "SELECT pid FROM pg_stat_activity";
            let children = self.sql(statement);
            let mut all: Vec<u32> = children.lines().map(|pid| pid.parse().unwrap()).collect();
            all.push(self.process.pid());
            all
        }
    }
}
