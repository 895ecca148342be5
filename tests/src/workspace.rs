//! Where things are in the repository.

use std::path::{Path, PathBuf};

/// The root of the repository that this program was built from.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is a folder of the workspace")
}

/// Where reports go, wherever cargo builds: `target/reports`.
pub fn reports() -> PathBuf {
    root().join("target/reports")
}

/// The committed space bundle: `models/demo`.
pub fn bundle() -> PathBuf {
    root().join("models/demo")
}

/// The demo's photos and ground truth: `demo`.
pub fn demo() -> PathBuf {
    root().join("demo")
}
