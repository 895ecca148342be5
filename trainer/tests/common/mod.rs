//! What several test files need.

use std::path::{Path, PathBuf};

/// The pretrained weights of a network, which are not in the repository. Where they are missing the test says that it is
/// left out; under continuous integration that is a failure.
pub(crate) fn weights_of(network: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/weights").join(format!("{network}.pth"));
    if path.exists() {
        return Some(path);
    }
    let reason = format!("{} is not there: run `make weights`", path.display());
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{reason}");
    eprintln!("left out: {reason}");
    None
}
