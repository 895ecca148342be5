//! Where things are in the repository.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// The root of the repository that this program belongs to: cargo and the Makefile say it to programs as they run. What was
/// compiled in is asked last, since a clone that shares the target folder may have compiled it.
pub fn root() -> &'static Path {
    static CRATE: LazyLock<PathBuf> = LazyLock::new(|| {
        std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
    });
    CRATE.parent().expect("this crate is a folder of the workspace")
}

/// Where reports go, wherever cargo builds: `target/reports`.
pub fn reports() -> PathBuf {
    root().join("target/reports")
}

/// Where pictures of the console go: `target/screenshots`, made where it is missing.
///
/// # Errors
/// Where it cannot be made.
pub fn screenshots() -> std::io::Result<PathBuf> {
    let folder = root().join("target/screenshots");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The committed space bundle: `models/demo`.
pub fn bundle() -> PathBuf {
    root().join("models/demo")
}

/// The demo's photos and ground truth: `demo`.
pub fn demo() -> PathBuf {
    root().join("demo")
}

/// A folder of what `make TARGET` fetches into the cache, if it holds all of `files`. `None`, with a line on standard error, where
/// `test` has to be left out.
///
/// # Panics
/// Where it is missing under continuous integration (`CI=true`).
pub fn fetched(test: &str, folder: &str, files: &[&str], target: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    let folder = cache.map(|cache| cache.join("glimpse").join(folder));
    let folder = folder.filter(|folder| files.iter().all(|file| folder.join(file).exists()));
    if folder.is_none() {
        leave_out(test, &format!("`make {target}` was not run, or says why it cannot be had"));
    }
    folder
}

/// Says that a test is left out for want of a part.
///
/// # Panics
/// Under continuous integration (`CI=true`).
pub fn leave_out(test: &str, reason: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{test}: {reason}");
    eprintln!("left out: {test} ({reason})");
}
