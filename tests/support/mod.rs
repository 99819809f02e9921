//! What the integration tests share: a real server, a network that fails on demand, servers that
//! misbehave, children that can be killed, and a way to wait that is not a sleep.
//!
//! The invariant: **a test leaves nothing behind and believes nothing it has not seen.** Every process
//! and thread started here ends with the value that owns it, also when the test panics. Every fault
//! is in force when the call that asks for it returns; none depends on timing. Whatever waits, waits
//! for a condition and has a bound.
//!
//! It knows nothing of relatch. A helper that spoke the protocol would agree with its mistakes.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test binary compiles this module and uses its own part of it"
)]

mod background;
pub mod child;
mod cluster;
pub mod deployment;
mod fake;
pub mod page;
mod proxy;
pub mod resp;
mod sentinel;
mod server;
mod tls;
mod wait;

pub use background::Background;
pub use child::ChildProcess;
pub use cluster::{RedisCluster, SLOTS};
pub use fake::FakeServer;
pub use proxy::{Connections, Direction, Proxy};
pub use resp::Reply;
pub use sentinel::{DOWN_AFTER, FakeSentinel, Watched, primary, replica_of, replica_through};
pub use server::RedisServer;
pub use tls::Certificates;
pub use wait::{BOUND, eventually, eventually_async, eventually_blocking};

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// A loopback port that nobody listens on, and that this process has not handed out lately.
///
/// Not from port 0: the kernel would pick one of its ephemeral ports, and hands the same ones to
/// clients. A client that keeps connecting to such a port while its server is away may be given
/// that very port as its own, and then talks to itself.
pub fn free_port() -> u16 {
    const FIRST: u16 = 11_000;
    const COUNT: u16 = 20_000; // ends below Linux' ephemeral ports, which start at 32,768
    static NEXT: AtomicU16 = AtomicU16::new(0);

    // Test binaries may run side by side: each starts elsewhere.
    let start = std::process::id().wrapping_mul(7919) % u32::from(COUNT);
    for _ in 0..COUNT {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let offset = (start + step) % u32::from(COUNT);
        let port = FIRST + u16::try_from(offset).expect("it is below COUNT, which is a u16");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}
