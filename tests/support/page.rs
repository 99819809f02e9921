//! Tables in `docs/deployments.md` that tests write: between `<!-- name -->` and `<!-- /name -->`.
//!
//! With `RELATCH_WRITE_DOCS=1` a test writes what it has found; otherwise it compares.

use parking_lot::Mutex;
use std::fs;
use std::path::PathBuf;

/// Several tests write there.
static ONE: Mutex<()> = Mutex::new(());

/// Whether the page is to be written.
pub fn writes() -> bool {
    std::env::var_os("RELATCH_WRITE_DOCS").is_some()
}

/// What stands there.
#[track_caller]
pub fn section(name: &str) -> String {
    let _one = ONE.lock();
    parts(name).1
}

/// What is to stand there, made from what does.
#[track_caller]
pub fn update_or_compare(name: &str, make: impl FnOnce(&str) -> String) {
    let _one = ONE.lock();
    let (before, written, after) = parts(name);
    let wanted = make(&written);
    if writes() {
        fs::write(path(), before + &wanted + &after).expect("the page can be written");
    } else {
        assert_eq!(
            written, wanted,
            "docs/deployments.md is out of date: RELATCH_WRITE_DOCS=1 cargo test --test conformance --test deployments"
        );
    }
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/deployments.md")
}

/// With the marks, what stands between them, and the rest.
#[track_caller]
fn parts(name: &str) -> (String, String, String) {
    let page = fs::read_to_string(path()).expect("the page can be read");
    let (open, close) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let from = page.find(&open).expect("the page has a place for it") + open.len();
    let until = from + page[from..].find(&close).expect("the place has an end");
    (
        page[..from].to_owned(),
        page[from..until].to_owned(),
        page[until..].to_owned(),
    )
}
