//! Two workers want the same directory, and each asks first whether it is there. Between the question and the answer's use the other one
//! makes it. Under a lock of the directory's name the question still holds when it is used.
//!
//! `cargo run --example make_directory [-- --redis redis://127.0.0.1:6379]`

mod shared;

use std::path::{Path, PathBuf};

use relatch::Relatch;

/// Makes it if it is not there, with what belongs into it. Tells whether it did.
async fn ensure(
    relatch: &Relatch,
    directory: &Path,
) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let mutex = relatch.mutex(&format!("example/directory/{}", directory.display()))?;
    let held = mutex.lock().await?;
    if directory.exists() {
        return Ok(false);
    }
    // It is there once it is whole: made aside, where only this hold does, and moved. Who dies on the way leaves nothing that passes for it.
    let aside = directory.with_extension(format!("{}.part", held.fence()));
    // `protect`: if the hold should be lost on the way, another may be making it already.
    let made = held.protect(async {
        tokio::fs::create_dir(&aside).await?;
        tokio::fs::write(aside.join("index"), "empty").await?;
        tokio::fs::rename(&aside, directory).await // an error if it is there: nobody must be first twice
    });
    match made.await {
        Ok(Ok(())) => held.release().await?,
        failed => {
            let _ = tokio::fs::remove_dir_all(&aside).await;
            failed??;
        }
    }
    Ok(true)
}

/// How many of so many workers made it.
pub(crate) async fn run(
    relatch: &Relatch,
    directory: PathBuf,
    workers: usize,
) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
    let mut crew = tokio::task::JoinSet::new();
    for _ in 0..workers {
        let (relatch, directory) = (relatch.clone(), directory.clone());
        crew.spawn(async move { ensure(&relatch, &directory).await });
    }
    let mut made = 0;
    while let Some(worker) = crew.join_next().await {
        made += usize::from(worker??);
    }
    Ok(made)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let relatch = shared::connect().await?;
    let directory = std::env::temp_dir().join(format!("relatch-example-{}", std::process::id()));
    let made = run(&relatch, directory.clone(), 2).await;
    let _ = std::fs::remove_dir_all(&directory);
    println!("2 workers, {} of them made {}", made?, directory.display());
    Ok(relatch.close().await?)
}
