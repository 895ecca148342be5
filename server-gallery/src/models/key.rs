//! The operator's key: an Ed25519 seed, as 64 hexadecimal digits in a file that nobody else can read.

use std::path::{Path, PathBuf};

use glimpse_protocol::ModelKey;
use glimpse_protocol::model::{Signature, signed};
use rand::TryRngCore as _;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use thiserror::Error;

use crate::access::file::{self, FileError, SecretError};

/// The key's name in the access folder.
pub const FILE: &str = "model.key";

/// Why there is no key.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file cannot be read or written, or others can read it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file has no line of text.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The line is no key.
    #[error("{} is no key for networks: it must have 64 hexadecimal digits, as `models key` writes it", .0.display())]
    NoKey(PathBuf),
    /// No random numbers.
    #[error("the operating system has no random numbers: {0}")]
    Random(String),
}

/// A key that signs manifests.
pub struct OperatorKey(Ed25519KeyPair);

impl OperatorKey {
    /// Reads a key.
    ///
    /// # Errors
    /// A file that cannot be read, that others can read, or that is no key.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let line = file::read_secret(path)?;
        // A public key has the same form as a seed: 32 bytes.
        let seed: ModelKey = line.parse().map_err(|_| KeyError::NoKey(path.to_owned()))?;
        Self::from_seed(seed.as_bytes()).ok_or_else(|| KeyError::NoKey(path.to_owned()))
    }

    /// The key in a file, made where there is none; and whether it was.
    ///
    /// # Errors
    /// As [`load`](Self::load), and where it cannot be written.
    pub fn load_or_make(path: &Path) -> Result<(Self, bool), KeyError> {
        if path.exists() {
            return Self::load(path).map(|key| (key, false));
        }
        let mut seed = [0; 32];
        rand::rngs::OsRng.try_fill_bytes(&mut seed).map_err(|error| KeyError::Random(error.to_string()))?;
        let key = Self::from_seed(&seed).ok_or_else(|| KeyError::NoKey(path.to_owned()))?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            file::make_private_folder(folder)?;
        }
        file::write_private(path, format!("{}\n", ModelKey::from_bytes(seed)).as_bytes())?;
        Ok((key, true))
    }

    fn from_seed(seed: &[u8; 32]) -> Option<Self> {
        Ed25519KeyPair::from_seed_unchecked(seed).ok().map(Self)
    }

    /// What devices are told, so that they take networks that this key signed.
    pub fn public(&self) -> ModelKey {
        ModelKey::from_bytes(
            self.0.public_key().as_ref().try_into().expect("Ed25519 has public keys of 32 bytes"),
        )
    }

    /// The signature of a manifest, as it travels.
    pub fn sign(&self, manifest: &[u8]) -> Signature {
        let signature = self.0.sign(&signed(manifest));
        Signature(signature.as_ref().try_into().expect("Ed25519 has signatures of 64 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{ED25519, UnparsedPublicKey};

    #[test]
    fn a_key_is_made_once_for_its_owners_eyes_and_signs() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("access").join(FILE);
        let (key, made) = OperatorKey::load_or_make(&path).unwrap();
        assert!(made);
        let (again, made) = OperatorKey::load_or_make(&path).unwrap();
        assert_eq!((again.public(), made), (key.public(), false));
        let public = UnparsedPublicKey::new(&ED25519, key.public().as_bytes().to_vec());
        let signature = again.sign(b"manifest");
        public.verify(&signed(b"manifest"), &signature.0).unwrap();
        assert!(public.verify(b"manifest", &signature.0).is_err());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
            assert!(OperatorKey::load(&path).err().unwrap().to_string().contains("chmod 600"));
        }
    }

    /// RFC 8032, section 7.1, test 1.
    #[test]
    fn the_public_key_is_that_of_the_standard() {
        let seed: ModelKey =
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60".parse().unwrap();
        let public = OperatorKey::from_seed(seed.as_bytes()).unwrap().public();
        assert_eq!(public.to_string(), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
    }

    #[test]
    fn what_is_no_key_is_named() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(FILE);
        for text in ["secret\n", "", "00\n"] {
            file::write_private(&path, text.as_bytes()).unwrap();
            let error = OperatorKey::load_or_make(&path).err().unwrap().to_string();
            assert!(error.contains(FILE), "{error}");
        }
    }
}
