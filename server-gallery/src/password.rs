//! Passwords of devices and of the console, kept as Argon2id hashes (RFC 9106) and never otherwise.

use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use rand::TryRngCore as _;
use thiserror::Error;

/// Memory of one hash in KiB, passes and lanes: the least that OWASP's password storage cheat sheet recommends for Argon2id.
/// A thousand devices that connect at once then cost a core half a minute and not the server its memory.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);

/// The longest password that is hashed, in bytes: more is somebody wasting our time.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// Why a password cannot be hashed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PasswordError {
    /// Empty or too long.
    #[error("a password must have 1 to {PASSWORD_BYTES_MAX} bytes, and this one has {0}")]
    Length(usize),
    /// The operating system gave no random numbers.
    #[error("cannot make a salt: {0}")]
    Random(String),
}

/// The hash of a password as a PHC string (`$argon2id$v=19$..`), with a random salt.
///
/// # Errors
/// A password of no or too many bytes, or no random numbers.
pub fn hash(password: &str) -> Result<String, PasswordError> {
    if password.is_empty() || password.len() > PASSWORD_BYTES_MAX {
        return Err(PasswordError::Length(password.len()));
    }
    let random = |error: &dyn std::fmt::Display| PasswordError::Random(error.to_string());
    let mut bytes = [0; 16];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(|error| random(&error))?;
    let salt = SaltString::encode_b64(&bytes).map_err(|error| random(&error))?;
    let hash = argon2().hash_password(password.as_bytes(), &salt).map_err(|error| random(&error))?;
    Ok(hash.to_string())
}

/// Whether this is the password with that hash; `false` also for what is no hash. Takes as long for a wrong one as for the right
/// one: some 20 ms of a core.
pub fn verify(password: &[u8], hash: &str) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else { return false };
    password.len() <= PASSWORD_BYTES_MAX && argon2().verify_password(password, &hash).is_ok()
}

/// Whether a text is a hash that [`verify`] reads.
pub fn is_hash(text: &str) -> bool {
    PasswordHash::new(text).is_ok_and(|hash| hash.algorithm.as_str() == "argon2id" && hash.hash.is_some())
}

fn argon2() -> Argon2<'static> {
    let (memory_kib, passes, lanes) = COST;
    let params = Params::new(memory_kib, passes, lanes, None).expect("constants within Argon2's bounds");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_known_by_its_hash_and_no_other_is() {
        let kept = hash("correct horse").unwrap();
        assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$") && is_hash(&kept), "{kept}");
        assert!(verify(b"correct horse", &kept));
        for wrong in ["", "correct hors", "correct horse ", "Correct horse"] {
            assert!(!verify(wrong.as_bytes(), &kept), "{wrong}");
        }
        assert_ne!(hash("correct horse").unwrap(), kept, "each hash has a salt of its own");
    }

    #[test]
    fn what_is_no_hash_fits_no_password() {
        for text in ["", "correct horse", "$argon2id$", "$argon2id$v=19$m=19456,t=2,p=1$AAAA"] {
            assert!(!verify(b"correct horse", text) && !is_hash(text), "{text}");
        }
        assert_eq!(hash(""), Err(PasswordError::Length(0)));
        assert_eq!(hash(&"x".repeat(1025)), Err(PasswordError::Length(1025)));
    }
}
