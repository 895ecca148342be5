//! A program update in one file: a manifest, its signature by the operator's key, what starts the board, and a root file system, as a
//! `tar` in that order. `firmware-config/image/device/usr/lib/glimpse/update` takes it on the device.
//!
//! The key is that of query networks (`glimpse-gallery models key`), which devices know already. A manifest begins with what it is, so
//! that no signature of the one kind is good for the other.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context as _, ensure};
use glimpse_protocol::ModelKey;
use rcgen::{KeyPair, PKCS_ED25519, SigningKey as _};
use tar::{Builder, Header};

/// The first line of a manifest.
pub const KIND: &str = "glimpse program update 1";

/// What follows manifest and signature.
const PARTS: [&str; 2] = ["slot.tar.xz", "root.squashfs"];

/// The key that signs what devices run.
#[derive(Debug)]
pub struct OperatorKey(KeyPair);

impl OperatorKey {
    /// Reads the file that `glimpse-gallery models key` made: an Ed25519 seed of 64 hexadecimal digits.
    ///
    /// # Errors
    /// A file that is not there, or holds no key.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let name = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read the key {name}"))?;
        // A public key has the same form as a seed: 32 bytes.
        let seed: ModelKey = text.trim().parse().map_err(|_| {
            anyhow::anyhow!("{name} holds no key: give the file model.key of a gallery's folder access")
        })?;
        // PKCS #8 of a seed: what comes before it is always the same (RFC 8410, section 7).
        let mut der = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".to_vec();
        der.extend(seed.as_bytes());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der.into(), &PKCS_ED25519);
        Ok(Self(pair.with_context(|| format!("{name} holds no key"))?))
    }
}

/// Signs the manifest in `folder`, and puts it and the parts into one file.
///
/// # Errors
/// Parts that are not there, or a disk that cannot be written.
pub fn write_update(folder: &Path, key: &OperatorKey, out: &Path) -> anyhow::Result<()> {
    let manifest = std::fs::read(folder.join("manifest")).context("cannot read the manifest")?;
    ensure!(manifest.starts_with(KIND.as_bytes()), "the manifest does not begin with `{KIND}`");
    let signature = key.0.sign(&manifest).context("cannot sign")?;
    let of = out.parent().filter(|of| !of.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let draft = tempfile::NamedTempFile::new_in(of).context("cannot make a file")?;
    let mut archive = Builder::new(BufWriter::new(draft.as_file()));
    let written = (|| {
        append(&mut archive, "manifest", manifest.len() as u64, &manifest[..])?;
        append(&mut archive, "manifest.sig", signature.len() as u64, &signature[..])?;
        for name in PARTS {
            let file = File::open(folder.join(name))?;
            append(&mut archive, name, file.metadata()?.len(), file)?;
        }
        archive.into_inner()?.flush()?;
        draft.as_file().sync_all()
    })();
    written.with_context(|| format!("cannot write {}", out.display()))?;
    #[cfg(unix)]
    std::fs::set_permissions(draft.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .context("cannot write the update")?;
    draft.persist(out).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(())
}

/// A file that is root's, and of no time, so that the same parts give the same archive.
fn append(
    archive: &mut Builder<impl Write>,
    name: &str,
    bytes: u64,
    content: impl Read,
) -> std::io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes);
    archive.append_data(&mut header, name, content.take(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_is_a_tar_that_tar_reads_and_the_same_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        std::fs::write(folder.join("manifest"), format!("{KIND}\nfamily uefi\n")).unwrap();
        std::fs::write(folder.join("slot.tar.xz"), b"kernel").unwrap();
        std::fs::write(folder.join("root.squashfs"), vec![7; 1024]).unwrap();
        std::fs::write(folder.join("key"), "07".repeat(32) + "\n").unwrap();
        let key = OperatorKey::read(&folder.join("key")).unwrap();
        for name in ["one", "two"] {
            write_update(folder, &key, &folder.join(name)).unwrap();
        }
        assert_eq!(std::fs::read(folder.join("one")).unwrap(), std::fs::read(folder.join("two")).unwrap());
        let listed = std::process::Command::new("tar").arg("-tvf").arg(folder.join("one")).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let names: Vec<&str> = listed.lines().filter_map(|line| line.split(' ').next_back()).collect();
        assert_eq!(names, ["manifest", "manifest.sig", "slot.tar.xz", "root.squashfs"], "{listed}");
        assert!(listed.contains(" 64 ") && listed.contains(" 1024 "), "{listed}");
    }

    #[test]
    fn a_key_that_is_none_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        assert!(OperatorKey::read(&file).unwrap_err().to_string().contains("cannot read the key"));
        std::fs::write(&file, "07").unwrap();
        assert!(OperatorKey::read(&file).unwrap_err().to_string().contains("holds no key"));
    }

    #[test]
    fn what_is_no_manifest_is_not_signed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("manifest"), "something else").unwrap();
        std::fs::write(folder.path().join("key"), "07".repeat(32)).unwrap();
        let key = OperatorKey::read(&folder.path().join("key")).unwrap();
        let error = write_update(folder.path(), &key, &folder.path().join("out")).unwrap_err();
        assert!(error.to_string().contains("does not begin with"), "{error}");
    }
}
