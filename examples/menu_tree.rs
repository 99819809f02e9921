//! A menu tree is built by a recursion that takes the lock again at every level. With `SET NX`, or with tokio's and std's own locks, the second
//! level waits for the first one for ever. A thread of relatch's is an owner: it re-enters.
//!
//! `cargo run --example menu_tree [-- --redis redis://127.0.0.1:6379]`

mod shared;

use relatch::{Error, Relatch, RwLock};

/// Who is whose parent: what a database would hold.
const MENU: [(&str, &str); 6] = [
    ("", "file"),
    ("file", "open"),
    ("open", "recent"),
    ("recent", "today"),
    ("", "edit"),
    ("edit", "paste"),
];

/// The part of the menu below `parent`, and how deep the lock was entered. It can be called for any part: so it takes the lock itself, and knows
/// nothing of who called.
fn below(lock: &RwLock, parent: &str, indent: usize, lines: &mut Vec<String>) -> Result<u64, Error> {
    let read = lock.read().wait()?;
    let mut deepest = read.depth();
    for (_, item) in MENU.iter().filter(|(of, _)| *of == parent) {
        lines.push(format!("{:indent$}{item}", ""));
        deepest = deepest.max(below(lock, item, indent + 2, lines)?);
    }
    Ok(deepest)
}

/// On a thread of its own, as ordinary code runs. A writer waits meanwhile: what holds already passes it.
pub(crate) fn run(relatch: &Relatch) -> Result<(Vec<String>, u64), Error> {
    let lock = relatch.rwlock("example/menu")?;
    std::thread::scope(|threads| {
        let outer = lock.read().wait()?;
        let editor = threads.spawn(|| lock.write().wait().map(drop));
        while relatch.block_on(relatch.inspect(lock.name()))?.waiter_count == 0 {
            std::thread::yield_now();
        }
        let mut lines = Vec::new();
        let deepest = below(&lock, "", 0, &mut lines)?;
        outer.release()?;
        editor.join().expect("it does not panic")?;
        Ok((lines, deepest))
    })
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let relatch = shared::connect().await?;
    let (lines, deepest) = run(&relatch)?;
    println!("{}", lines.join("\n"));
    println!("the lock was entered {deepest} deep, past a waiting writer");
    relatch.close().await
}
