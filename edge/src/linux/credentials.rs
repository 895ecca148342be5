//! How the device proves itself to the server, and the server to it: a password, TLS 1.3, a certificate.
//!
//! The user name is the device's own name. Secrets come from files alone, which others must not be able to read, and
//! are never shown.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use glimpse_protocol::device::Security;
use rumqttc::tokio_rustls::rustls::crypto::ring;
use rumqttc::tokio_rustls::rustls::pki_types::pem::PemObject as _;
use rumqttc::tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rumqttc::tokio_rustls::rustls::{ClientConfig, RootCertStore, version};
use thiserror::Error;

/// The longest password, as the server's.
const PASSWORD_BYTES_MAX: usize = 1024;

/// The longest file of certificates: all public authorities together have some 200 KB.
const PEM_BYTES_MAX: u64 = 4 << 20;

/// Why credentials cannot be used.
#[derive(Debug, Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A secret that others can read.
    #[error(
        "{} can be read or changed by others on this machine (mode {mode:o}): run `chmod 600 {}`",
        path.display(),
        path.display()
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A password file without a password.
    #[error(
        "{} must hold a password of 1 to {PASSWORD_BYTES_MAX} bytes of text, in its first line and no other",
        .0.display()
    )]
    NoPassword(PathBuf),
    /// A file that is no certificate or key.
    #[error("{} cannot be used: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Secrets, ready for use.
#[derive(Clone, Default)]
pub struct Credentials {
    pub(super) password: Option<String>,
    pub(super) tls: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Credentials {
    /// Reads the files that a device's description names.
    ///
    /// # Errors
    /// A file that cannot be read or used, and a secret that others can read.
    pub fn load(security: &Security) -> Result<Self, CredentialsError> {
        let password = security.password_file.as_deref().map(secret).transpose()?;
        let tls = security.ca.as_deref().map(|ca| tls(ca, security)).transpose()?;
        Ok(Self { password, tls })
    }

    /// Whether a password would travel in the clear.
    pub const fn has_naked_password(&self) -> bool {
        self.password.is_some() && self.tls.is_none()
    }
}

/// The one line of a private file: a password, or a token.
pub(super) fn secret(path: &Path) -> Result<String, CredentialsError> {
    check_mode(path)?;
    // Two more for the line's end.
    let bytes = read(path, PASSWORD_BYTES_MAX as u64 + 2)?;
    let line = String::from_utf8(bytes).ok().and_then(|text| {
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let is_password =
            (1..=PASSWORD_BYTES_MAX).contains(&line.len()) && !line.contains(['\n', '\r', '\0']);
        is_password.then(|| line.to_owned())
    });
    line.ok_or_else(|| CredentialsError::NoPassword(path.to_owned()))
}

/// TLS 1.3 to a server that `ca` vouches for, with the device's own certificate where it has one.
fn tls(ca: &Path, security: &Security) -> Result<Arc<ClientConfig>, CredentialsError> {
    let unusable = |path: &Path, reason: &dyn fmt::Display| CredentialsError::Unusable {
        path: path.to_owned(),
        reason: reason.to_string(),
    };
    let mut roots = RootCertStore::empty();
    if roots.add_parsable_certificates(certificates(ca)?).0 == 0 {
        return Err(unusable(ca, &"none of its certificates is of an authority"));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| unusable(ca, &error))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &security.identity else {
        return Ok(Arc::new(builder.with_no_client_auth()));
    };
    let chain = certificates(certificate)?;
    check_mode(key)?;
    let secret = PrivateKeyDer::from_pem_slice(&read(key, PEM_BYTES_MAX)?);
    let secret = secret.map_err(|error| unusable(key, &error))?;
    let config = builder.with_client_auth_cert(chain, secret);
    config.map(Arc::new).map_err(|error| unusable(certificate, &error))
}

/// At least one certificate.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let unusable = |reason: String| CredentialsError::Unusable { path: path.to_owned(), reason };
    let pem = read(path, PEM_BYTES_MAX)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|error| unusable(error.to_string()))?;
    if all.is_empty() { Err(unusable("it has no certificate in PEM form".to_owned())) } else { Ok(all) }
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, CredentialsError> {
    let error = |source| CredentialsError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(error)?;
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > bytes_max {
        return Err(error(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {bytes_max} bytes"),
        )));
    }
    Ok(bytes)
}

#[cfg(unix)]
fn check_mode(path: &Path) -> Result<(), CredentialsError> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = std::fs::metadata(path);
    let metadata = metadata.map_err(|source| CredentialsError::Read { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o7777;
    // A pipe of a service manager is nobody's file.
    if metadata.is_file() && mode & 0o077 != 0 {
        return Err(CredentialsError::Mode { path: path.to_owned(), mode });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_mode(_: &Path) -> Result<(), CredentialsError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        path
    }

    fn with_password(path: PathBuf) -> Result<Credentials, CredentialsError> {
        Credentials::load(&Security { password_file: Some(path), ..Security::default() })
    }

    #[test]
    fn a_password_is_the_one_line_of_a_private_file() {
        let place = tempfile::tempdir().unwrap();
        let good = file(place.path(), "good", b"two words\n");
        let credentials = with_password(good.clone()).unwrap();
        assert_eq!(credentials.password.as_deref(), Some("two words"));
        assert!(credentials.has_naked_password() && !format!("{credentials:?}").contains("words"));
        for bytes in [&b""[..], b"\n", b"a\nb", b"\xff", &[b'x'; 1025]] {
            let error = with_password(file(place.path(), "bad", bytes)).unwrap_err();
            assert!(matches!(error, CredentialsError::NoPassword(_)), "{error}");
        }
        assert!(matches!(with_password(place.path().join("absent")), Err(CredentialsError::Read { .. })));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(&good, std::fs::Permissions::from_mode(0o644)).unwrap();
            assert!(with_password(good).unwrap_err().to_string().contains("chmod 600"));
        }
    }

    #[test]
    fn what_is_no_certificate_is_named() {
        let place = tempfile::tempdir().unwrap();
        let text = file(place.path(), "ca.pem", b"hello");
        let error = Credentials::load(&Security { ca: Some(text), ..Security::default() }).unwrap_err();
        assert!(error.to_string().contains("ca.pem cannot be used"), "{error}");
    }
}
