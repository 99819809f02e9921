//! What the demo's lock guards: how many files and bytes there are in each folder of a tree.
//!
//! The invariant: a folder that is in it has all its ancestors in it. It knows nothing of locks; whoever changes it holds one.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::path::Path;

use anyhow::{Context as _, ensure};
use ignore::WalkBuilder;
use serde::{Deserialize, Serialize};

/// A bigger tree is shown by its first so many files and folders: a demo is to end soon.
const MOST_ENTRIES: usize = 20_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

/// Each folder's own files. The key is the path below the root, `/` between its parts; the root's is empty.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Catalogue(BTreeMap<String, Tally>);

/// What the catalogue knows of one folder.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Folder {
    /// In the folder itself.
    pub(crate) here: Tally,
    /// In it and everything below.
    pub(crate) total: Tally,
    /// Its direct subfolders.
    pub(crate) folders: Vec<String>,
}

impl Catalogue {
    /// Reads a tree as `git` and `ripgrep` see it: without hidden and without ignored files.
    pub(crate) fn scan(root: &Path) -> anyhow::Result<Self> {
        let kind = std::fs::metadata(root)
            .with_context(|| format!("there is no tree to read at {}", root.display()))?;
        ensure!(kind.is_dir(), "{} is not a folder", root.display());
        let mut catalogue = Self::default();
        catalogue.0.insert(String::new(), Tally::default());
        // What can't be read, or went away meanwhile, is not in the catalogue.
        for entry in walk(root).build().flatten().skip(1).take(MOST_ENTRIES) {
            let Some(path) = below(root, entry.path()) else {
                continue;
            };
            match entry.file_type() {
                Some(kind) if kind.is_dir() => {
                    catalogue.0.entry(path).or_default();
                }
                Some(kind) if kind.is_file() => {
                    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                    *catalogue.0.entry(parent.into()).or_default() += size(&entry);
                }
                _ => {}
            }
        }
        Ok(catalogue)
    }

    /// Reads one folder, without what is below. One that is gone has nothing in it.
    pub(crate) fn count(root: &Path, folder: &str) -> Tally {
        let mut tally = Tally::default();
        let files = walk(&root.join(folder)).max_depth(Some(1)).build();
        for entry in files.flatten().take(MOST_ENTRIES) {
            if entry.file_type().is_some_and(|kind| kind.is_file()) {
                tally += size(&entry);
            }
        }
        tally
    }

    pub(crate) fn folders(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// `None` for a folder that is not in it.
    pub(crate) fn look(&self, folder: &str) -> Option<Folder> {
        let here = *self.0.get(folder)?;
        let mut found = Folder {
            here,
            total: here,
            folders: Vec::new(),
        };
        let prefix = match folder {
            "" => String::new(),
            folder => format!("{folder}/"),
        };
        let under = self.0.range(prefix.clone()..);
        for (path, tally) in under.take_while(|(path, _)| path.starts_with(&prefix)) {
            if path == folder {
                continue; // The root is under itself.
            }
            found.total += *tally;
            if !path[prefix.len()..].contains('/') {
                found.folders.push(path.clone());
            }
        }
        Some(found)
    }

    /// Changes one folder, if it is still there.
    pub(crate) fn set(&mut self, folder: &str, tally: Tally) {
        if let Some(here) = self.0.get_mut(folder) {
            *here = tally;
        }
    }
}

fn walk(root: &Path) -> WalkBuilder {
    let mut walk = WalkBuilder::new(root);
    walk.require_git(false);
    walk
}

fn size(entry: &ignore::DirEntry) -> Tally {
    Tally {
        files: 1,
        bytes: entry.metadata().map_or(0, |file| file.len()),
    }
}

fn below(root: &Path, path: &Path) -> Option<String> {
    let parts = path.strip_prefix(root).ok()?.components();
    let parts: Vec<_> = parts.map(|part| part.as_os_str().to_string_lossy()).collect();
    Some(parts.join("/"))
}
