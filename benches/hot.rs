//! Times the hot paths of the embedded backend, and of writing calls for a server: `cargo bench --bench hot`. `cargo test` runs each once.
//!
//! What a server's backend costs as a whole is for `relatch bench` to tell, next to floors from the same run.

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

#[cfg(feature = "redis")]
#[divan::bench(args = ["a pair", "a renewal of 100 names"])]
fn encode(bencher: Bencher<'_, '_>, what: &str) {
    let [pair, renewal] = relatch::CallEncoding::of(100);
    let encoding = if what == "a pair" { pair } else { renewal };
    bencher.bench_local(|| encoding.encode());
}
