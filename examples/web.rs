//! An axum service with a shared state: accounts that are moved between, by handlers on as many machines as there are. The lock is in the state, a request is an
//! owner, and a lock that is taken for too long is an answer: 503, and who has it.
//!
//! `cargo run --example web [-- --redis redis://127.0.0.1:6379] [--listen 127.0.0.1:8080]`, then `curl -X POST
//! http://127.0.0.1:8080/move/alice/bob/30`.

mod shared;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use parking_lot::Mutex;
use relatch::{Error, Relatch, Striped};

/// Shared by all handlers. Cheap to clone, as all of it is.
#[derive(Clone)]
pub(crate) struct Bank {
    accounts: Striped,
    /// In place of a database.
    balances: Arc<Mutex<HashMap<String, i64>>>,
}

/// What a handler answers when it could not.
type Failed = (StatusCode, String);

fn busy(error: Error) -> Failed {
    let status = match () {
        () if error.is_timeout() || error.is_unreachable() => StatusCode::SERVICE_UNAVAILABLE,
        () => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, error.to_string())
}

impl Bank {
    pub(crate) fn new(relatch: &Relatch) -> Result<Self, Error> {
        Ok(Self {
            accounts: relatch.striped("example/accounts", 64)?,
            balances: Arc::new(Mutex::new(HashMap::from([
                ("alice".into(), 100),
                ("bob".into(), 0),
            ]))),
        })
    }

    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/move/{from}/{to}/{amount}", post(move_money))
            .route("/total", get(total))
            .with_state(self)
    }
}

async fn move_money(
    State(bank): State<Bank>,
    Path((from, to, amount)): Path<(String, String, u32)>,
) -> Result<String, Failed> {
    // Both, in an order that can't deadlock with who moves the other way.
    let both = bank
        .accounts
        .write_for([&from, &to])
        .timeout(Duration::from_secs(2))
        .label(format!("moves {amount} from {from} to {to}"))
        .await
        .map_err(busy)?;
    let there = bank.balances.lock().get(&from).copied().unwrap_or(0);
    tokio::task::yield_now().await; // a database would be asked here
    let answer = if there < i64::from(amount) {
        Err((StatusCode::CONFLICT, format!("{from} has {there}")))
    } else {
        let mut balances = bank.balances.lock();
        *balances.entry(from.clone()).or_default() -= i64::from(amount);
        *balances.entry(to).or_default() += i64::from(amount);
        Ok(format!("{from} has {}", balances[&from]))
    };
    both.release().await.map_err(busy)?; // an error: the lease had ended, and others may have been in between
    answer
}

async fn total(State(bank): State<Bank>) -> Result<String, Failed> {
    let all = bank
        .accounts
        .read_all()
        .timeout(Duration::from_secs(2))
        .await
        .map_err(busy)?;
    let total: i64 = bank.balances.lock().values().sum();
    all.release().await.map_err(busy)?;
    Ok(total.to_string())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let relatch = shared::connect().await?;
    let listen = shared::argument("--listen").unwrap_or_else(|| "127.0.0.1:8080".into());
    let listener = tokio::net::TcpListener::bind(listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, Bank::new(&relatch)?.router())
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    Ok(relatch.close().await?)
}
