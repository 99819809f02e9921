//! Times the hot paths of the embedded backend: `cargo bench --bench hot`. `cargo test` runs each once.
//!
//! What a server's backend costs is for `relatch bench` to tell, next to floors from the same run.

mod paths;

use divan::Bencher;
use paths::{EMBEDDED, Path, Steps};

fn main() {
    divan::main();
}

#[divan::bench(args = EMBEDDED.map(|(_, path)| path))]
fn embedded(bencher: Bencher<'_, '_>, path: &Path) {
    let mut steps = Steps::new(*path);
    bencher.bench_local(|| steps.step());
}
