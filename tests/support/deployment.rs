//! Every kind of deployment that the tests know how to make, by name.
//!
//! The invariant: **what is in the list is what is tested**: the conformance suite runs over each of [`ALL`], and a test compares the two.
//! Adding one here is what it takes; `docs/deployments.md` is generated from it.

use super::sentinel::{Watched, primary, replica_of};
use super::tls::Certificates;
use super::{Proxy, RedisCluster, RedisServer};
use std::any::Any;
use std::time::Duration;

/// A way to deploy servers.
pub struct Deployment {
    /// One word: the name of its test.
    pub name: &'static str,
    /// As the documentation says it.
    pub what: &'static str,
    pub start: fn() -> Running,
}

/// Servers that run, until this is dropped.
pub struct Running {
    pub url: String,
    /// How many replicas are to acknowledge each hold.
    pub replicas: u32,
    _keeps: Vec<Box<dyn Any + Send + Sync>>,
}

impl Running {
    fn new(url: String) -> Self {
        Self {
            url,
            replicas: 0,
            _keeps: Vec::new(),
        }
    }

    fn keeping(mut self, part: impl Any + Send + Sync) -> Self {
        self._keeps.push(Box::new(part));
        self
    }
}

pub const ALL: &[Deployment] = &[
    Deployment {
        name: "tcp",
        what: "one server, `redis://`",
        start: || {
            let server = RedisServer::start();
            Running::new(server.url()).keeping(server)
        },
    },
    Deployment {
        name: "socket",
        what: "one server on a unix socket, `unix://`",
        start: || {
            let directory = tempfile::tempdir().expect("a folder");
            let path = directory.path().join("redis.sock").display().to_string();
            let server = RedisServer::start_with(&["--unixsocket", &path]);
            Running::new(format!("unix://{path}?db=3"))
                .keeping(server)
                .keeping(directory)
        },
    },
    Deployment {
        name: "tls",
        what: "one server over TLS, own authority, client certificates, password, `rediss://`",
        start: || {
            let (files, port) = (Certificates::new("cache.example"), super::free_port());
            let mut arguments = files.arguments(port, true);
            arguments.extend(["--requirepass".to_owned(), "sesame".to_owned()]);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let server = RedisServer::start_with(&arguments);
            let url = format!("rediss://:sesame@127.0.0.1:{port}/2?{}", files.parameters(true));
            Running::new(url).keeping(server).keeping(files)
        },
    },
    Deployment {
        name: "least_rights",
        what: "one server, a user with the least rights",
        start: || with_rights(&[]),
    },
    Deployment {
        name: "no_messages",
        what: "one server, a user without publish and subscribe",
        start: || with_rights(&["resetchannels", "-publish", "-subscribe"]),
    },
    Deployment {
        name: "only_evalsha",
        what: "one server, scripts only by their hash",
        start: || with_rights(&["-eval"]),
    },
    Deployment {
        name: "only_eval",
        what: "one server, scripts only by their source",
        start: || with_rights(&["-evalsha", "-script"]),
    },
    Deployment {
        name: "proxy",
        what: "one server behind a TCP proxy that drops idle connections",
        start: || {
            let server = RedisServer::start();
            let proxy = Proxy::start(server.port());
            proxy.drop_idle(Some(Duration::from_millis(400)));
            Running::new(proxy.url()).keeping(proxy).keeping(server)
        },
    },
    Deployment {
        name: "replicas",
        what: "a primary with a replica that acknowledges every hold, `.replicas(1, …)`",
        start: || {
            let first = primary();
            let replica = replica_of(&first);
            Running {
                replicas: 1,
                ..Running::new(first.url())
            }
            .keeping(replica)
            .keeping(first)
        },
    },
    Deployment {
        name: "sentinel",
        what: "three Sentinels, a primary, two replicas, passwords for all, `redis+sentinel://`",
        start: || {
            let watched = Watched::start_secured();
            Running::new(watched.url()).keeping(watched)
        },
    },
    Deployment {
        name: "cluster",
        what: "a cluster of three masters with a replica each, `redis-cluster://`",
        start: || {
            let cluster = RedisCluster::start_with(3, 1, Duration::from_secs(30), &[]);
            Running::new(cluster.url()).keeping(cluster)
        },
    },
    Deployment {
        name: "cluster_secured",
        what: "a cluster over TLS, client certificates, a user with the least rights, `rediss-cluster://`",
        start: || {
            let files = Certificates::new("cache.example");
            let cluster = RedisCluster::start_secured(3, &files);
            let mut words = vec!["ACL", "SETUSER", "relatch"];
            words.extend(least_rights());
            words.extend(least_rights_in_a_cluster());
            for node in cluster.nodes() {
                node.cli(&words);
            }
            let places = cluster.tls_places();
            let url = format!(
                "rediss-cluster://relatch:password@{places}?{}",
                files.parameters(true)
            );
            Running::new(url).keeping(cluster).keeping(files)
        },
    },
];

/// The rule in the documentation, which is what is promised to be enough.
pub fn least_rights() -> Vec<&'static str> {
    include_str!("../../docs/deployments.md")
        .lines()
        .find_map(|line| line.strip_prefix("ACL SETUSER relatch "))
        .expect("the page has a rule")
        .split(' ')
        .collect()
}

/// What the documentation adds to it for a cluster.
pub fn least_rights_in_a_cluster() -> Vec<&'static str> {
    include_str!("../../docs/deployments.md")
        .lines()
        .find_map(|line| line.strip_prefix("In a cluster also: `")?.split('`').next())
        .expect("the page has a rule")
        .split(' ')
        .collect()
}

fn with_rights(more: &[&str]) -> Running {
    let server = RedisServer::start();
    let mut words = vec!["ACL", "SETUSER", "relatch"];
    words.extend(least_rights());
    words.extend(more);
    server.cli(&words);
    Running::new(format!("redis://relatch:password@127.0.0.1:{}", server.port())).keeping(server)
}
