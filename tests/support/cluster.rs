//! A real Redis Cluster for one test: masters and replicas, each a [`RedisServer`] with a port, a bus port and a
//! directory of its own.
//!
//! The invariant: **a `RedisCluster` that exists is whole.** Every node has said that all slots are served, every replica that it
//! follows its master, and every node names the same master for each slot. Dropping it kills all of them.
//!
//! Slots are moved here as `redis-cli --cluster reshard` moves them, in steps that a test can stop between.

use super::Certificates;
use super::deployment::{least_rights, least_rights_in_a_cluster};
use super::resp::Reply;
use super::server::RedisServer;
use super::wait::eventually_blocking;
use std::time::Duration;

/// How many hash slots a cluster has.
pub const SLOTS: u16 = 16_384;

/// Nodes find each other by gossip, a few times a second.
const GATHERING: Duration = Duration::from_secs(30);

/// Masters first, then the replicas, in the order of their masters.
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    masters: usize,
    /// Where each speaks TLS, if they do.
    tls_ports: Vec<u16>,
}

impl RedisCluster {
    /// Masters alone, that never take each other for dead: for what does not kill.
    pub fn start(masters: usize) -> Self {
        Self::start_with(masters, 0, Duration::from_secs(30), &[])
    }

    /// `replicas` for each master. A master that is silent for `node_timeout` is taken for dead, and replaced about a second
    /// later.
    pub fn start_with(masters: usize, replicas: usize, node_timeout: Duration, arguments: &[&str]) -> Self {
        let arguments = |_| arguments.iter().map(|&word| word.to_owned()).collect();
        Self::start_each(masters, replicas, node_timeout, Vec::new(), arguments)
    }

    /// Masters alone, that speak TLS with clients, who need a certificate, and with each other.
    pub fn start_secured(masters: usize, certificates: &Certificates) -> Self {
        let ports: Vec<u16> = (0..masters).map(|_| super::free_port()).collect();
        Self::start_each(masters, 0, Duration::from_secs(30), ports.clone(), |node| {
            let mut arguments = certificates.arguments(ports[node], true);
            arguments.extend(["--tls-cluster".to_owned(), "yes".to_owned()]);
            arguments
        })
    }

    fn start_each(
        masters: usize,
        replicas: usize,
        node_timeout: Duration,
        tls_ports: Vec<u16>,
        arguments: impl Fn(usize) -> Vec<String> + Sync,
    ) -> Self {
        let node_timeout = node_timeout.as_millis().to_string();
        let all = [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            &node_timeout,
            // How long a replica was cut off does not matter: the tests cut it off.
            "--cluster-replica-validity-factor",
            "0",
            "--cluster-allow-replica-migration",
            "no",
            "--repl-diskless-sync-delay",
            "0",
        ];
        let start = |node: usize| {
            let own = arguments(node);
            let words: Vec<&str> = all.into_iter().chain(own.iter().map(String::as_str)).collect();
            RedisServer::start_with(&words)
        };
        let start = &start;
        let nodes: Vec<RedisServer> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..masters * (1 + replicas))
                .map(|node| scope.spawn(move || start(node)))
                .collect();
            starting
                .into_iter()
                .map(|node| node.join().expect("a node starts"))
                .collect()
        });
        let cluster = Self {
            nodes,
            masters,
            tls_ports,
        };
        cluster.gather();
        cluster
    }

    fn gather(&self) {
        for (at, node) in self.nodes.iter().enumerate() {
            // Different from the start, so that they have nothing to agree on.
            node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
            if at < self.masters {
                let (first, last) = self.share(at);
                let slots: Vec<String> = (first..=last).map(|slot| slot.to_string()).collect();
                let mut add = vec!["CLUSTER", "ADDSLOTS"];
                add.extend(slots.iter().map(String::as_str));
                node.cli(&add);
            }
            for (with, other) in self.nodes[..at].iter().enumerate() {
                let port = self.tls_ports.get(with).copied().unwrap_or(other.port());
                let (port, bus) = (port.to_string(), other.bus_port().to_string());
                node.cli(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
            }
        }
        eventually_blocking(GATHERING, "every node knows every node", || {
            self.nodes.iter().all(|node| known(node) == self.nodes.len())
        });
        for (at, node) in self.nodes.iter().enumerate().skip(self.masters) {
            let master = self.id((at - self.masters) % self.masters);
            node.cli(&["CLUSTER", "REPLICATE", &master]);
        }
        self.settled();
        eventually_blocking(GATHERING, "replicas follow, and all know it", || {
            let of_replicas = |node: &RedisServer| node.cli(&["CLUSTER", "NODES"]).matches("slave").count();
            let replicas = &self.nodes[self.masters..];
            replicas
                .iter()
                .all(|node| node.info("replication", "master_link_status").as_deref() == Some("up"))
                && self.nodes.iter().all(|node| of_replicas(node) == replicas.len())
        });
    }

    /// The slots that a master has at the start.
    pub fn share(&self, master: usize) -> (u16, u16) {
        let first = |n: usize| usize::from(SLOTS) * n / self.masters;
        let narrow = |slot: usize| u16::try_from(slot).expect("it is below SLOTS, which is a u16");
        (narrow(first(master)), narrow(first(master + 1) - 1))
    }

    /// Waits until every node that runs says that all slots are served, and all name the same masters for them.
    #[track_caller]
    pub fn settled(&self) {
        eventually_blocking(GATHERING, "the cluster is whole", || {
            let mut seen: Option<Vec<(u16, u16, u16)>> = None;
            self.nodes
                .iter()
                .filter(|node| node.try_reply(&["PING"]).is_ok())
                .all(|node| {
                    let table = slots(node);
                    let served: u32 = table
                        .iter()
                        .map(|(first, last, _)| u32::from(last - first) + 1)
                        .sum();
                    let same = seen.get_or_insert_with(|| table.clone()) == &table;
                    let state = node.try_reply(&["CLUSTER", "INFO"]).map(|info| info.text());
                    same && served == u32::from(SLOTS)
                        && state.is_ok_and(|info| info.contains("cluster_state:ok"))
                })
        });
    }

    /// `redis-cluster://127.0.0.1:PORT,…` of all nodes.
    pub fn url(&self) -> String {
        let nodes: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port()))
            .collect();
        format!("redis-cluster://{}", nodes.join(","))
    }

    /// Makes a user on every node, with the rights that the documentation gives, and `but` for this on one of them.
    pub fn allow(&self, user: &str, (node, but): (usize, &[&str])) {
        for (at, each) in self.nodes.iter().enumerate() {
            let mut words = vec!["ACL", "SETUSER", user, "reset"];
            words.extend(least_rights());
            words.extend(least_rights_in_a_cluster());
            if at == node {
                words.extend(but);
            }
            each.cli(&words);
        }
    }

    /// The address for a user that [`allow`](Self::allow) made.
    pub fn url_as(&self, user: &str) -> String {
        self.url().replace("://", &format!("://{user}:password@"))
    }

    /// From now on everybody is told that this node is reached by another port. Of its own port nobody knows any more but the other nodes.
    pub fn announce(&self, node: usize, port: u16) {
        self.nodes[node].cli(&["CONFIG", "SET", "cluster-announce-port", &port.to_string()]);
        eventually_blocking(GATHERING, "everybody tells the other port", || {
            let told = |by: &RedisServer| slots(by).iter().any(|(_, _, told)| *told == port);
            self.nodes.iter().all(told)
        });
    }

    /// `127.0.0.1:PORT,…` of the ports for TLS.
    pub fn tls_places(&self) -> String {
        let places: Vec<String> = self
            .tls_ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        places.join(",")
    }

    /// Of one node only: whoever starts with it has to find the others.
    pub fn url_of(&self, node: usize) -> String {
        format!("redis-cluster://127.0.0.1:{}", self.nodes[node].port())
    }

    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    pub fn node(&self, at: usize) -> &RedisServer {
        &self.nodes[at]
    }

    /// Those that were masters at the start.
    pub fn masters(&self) -> &[RedisServer] {
        &self.nodes[..self.masters]
    }

    pub fn id(&self, node: usize) -> String {
        self.nodes[node].cli(&["CLUSTER", "MYID"])
    }

    pub fn slot_of(&self, key: &str) -> u16 {
        // Any node can tell.
        let running = self
            .nodes
            .iter()
            .rev()
            .find_map(|node| node.try_reply(&["CLUSTER", "KEYSLOT", key]).ok());
        let slot = running.as_ref().and_then(Reply::integer);
        slot.and_then(|slot| u16::try_from(slot).ok())
            .expect("KEYSLOT tells a slot")
    }

    /// The node that serves a slot, as node `from` sees it.
    pub fn master_of(&self, slot: u16, from: usize) -> Option<usize> {
        let table = slots(&self.nodes[from]);
        let (_, _, port) = *table
            .iter()
            .find(|(first, last, _)| (*first..=*last).contains(&slot))?;
        self.nodes.iter().position(|node| node.port() == port)
    }

    /// A name for a lock whose keys are in a slot that this master has at the start.
    pub fn name_on(&self, master: usize, seed: &str) -> String {
        let (first, last) = self.share(master);
        (0..)
            .map(|n| format!("{seed}-{n}"))
            .find(|name| (first..=last).contains(&self.slot_of(&format!("relatch:1:{{{name}}}"))))
            .expect("there are enough numbers")
    }

    // -- moving a slot -------------------------------------------------------------------------------------------

    /// The first step: from now on keys that `from` does not have are asked of `to`.
    pub fn begin_move(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        self.nodes[to].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.id(from)]);
        self.nodes[from].cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.id(to)]);
    }

    /// Moves up to `count` keys of the slot; how many it found.
    pub fn move_keys(&self, slot: u16, from: usize, to: usize, count: usize) -> usize {
        let slot = slot.to_string();
        let keys = self.nodes[from].reply(&["CLUSTER", "GETKEYSINSLOT", &slot, &count.to_string()]);
        let port = self.nodes[to].port().to_string();
        let keys: Vec<String> = keys.items().iter().map(Reply::text).collect();
        if !keys.is_empty() {
            let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "10000", "KEYS"];
            migrate.extend(keys.iter().map(String::as_str));
            self.nodes[from].cli(&migrate);
        }
        keys.len()
    }

    /// The last step: `to` serves it, and everybody is told.
    pub fn end_move(&self, slot: u16, to: usize) {
        let (slot, id) = (slot.to_string(), self.id(to));
        // The new one first: so it is never nobody's.
        self.nodes[to].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]);
        // By that it has a later epoch than all others. Before they know of it, one that claims the slot as of old would win.
        let epoch = epoch_of(&self.nodes[to], &id);
        eventually_blocking(GATHERING, "all masters know the new one's epoch", || {
            let known =
                |node: &RedisServer| node.try_reply(&["PING"]).is_err() || epoch_of(node, &id) >= epoch;
            self.masters().iter().all(known)
        });
        for master in self.masters() {
            // One that is stopped or killed hears of it by gossip.
            let _ = master.try_reply(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]);
        }
    }

    /// All steps, a few keys at a time.
    pub fn move_slot(&self, slot: u16, from: usize, to: usize) {
        self.begin_move(slot, from, to);
        while self.move_keys(slot, from, to, 2) > 0 {}
        self.end_move(slot, to);
    }

    /// Empties every master.
    pub fn flush(&self) {
        for master in self.masters() {
            master.cli(&["FLUSHALL"]);
        }
    }

    /// How often a command ran, on all nodes.
    pub fn command_count(&self, command: &str) -> u64 {
        self.nodes.iter().map(|node| node.command_count(command)).sum()
    }
}

/// The epoch of the node with this id, as far as `node` knows.
fn epoch_of(node: &RedisServer, id: &str) -> u64 {
    let nodes = node.try_reply(&["CLUSTER", "NODES"]).map(|nodes| nodes.text());
    let nodes = nodes.unwrap_or_default();
    let line = nodes.lines().find(|line| line.starts_with(id));
    line.and_then(|line| line.split(' ').nth(6)?.parse().ok())
        .unwrap_or(0)
}

fn known(node: &RedisServer) -> usize {
    node.cli(&["CLUSTER", "NODES"])
        .lines()
        .filter(|line| line.contains(" connected") && !line.contains("handshake"))
        .count()
}

/// First slot, last slot, the master's port.
fn slots(node: &RedisServer) -> Vec<(u16, u16, u16)> {
    let Ok(reply) = node.try_reply(&["CLUSTER", "SLOTS"]) else {
        return Vec::new();
    };
    let number = |reply: &Reply| reply.integer().and_then(|n| u16::try_from(n).ok());
    let mut table: Vec<(u16, u16, u16)> = reply
        .items()
        .iter()
        .filter_map(|range| {
            let parts = range.items();
            let port = number(parts.get(2)?.items().get(1)?)?;
            Some((number(parts.first()?)?, number(parts.get(1)?)?, port))
        })
        .collect();
    table.sort_unstable();
    table
}
