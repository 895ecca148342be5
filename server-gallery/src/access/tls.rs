//! TLS 1.3 and nothing older, by rustls: for those who connect to us, and for us where we connect to a broker.
//!
//! A client of ours may show a certificate. It is accepted when its fingerprint is in the registry of devices and,
//! where the configuration names an authority (`tls_client_ca`), when that authority signed it and it is within its
//! dates; without an authority the registry alone says what is good and until when. Whether the device of that
//! certificate may connect is asked later, with its MQTT name at hand. Sessions are not resumed, so that every
//! connection shows its certificate anew, and there is no early data that could be replayed.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, PeerIncompatible,
    RootCertStore, ServerConfig, SignatureScheme,
};

use super::file::{FileError, check_mode};
use super::live::Access;
use super::registry::Fingerprint;

/// The longest file of certificates or keys that is read: all authorities of a system have some 200 KB.
const PEM_BYTES_MAX: u64 = 4 << 20;

/// The files of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate and those between it and its authority, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// Who signs the certificates of devices.
    pub client_ca: Option<PathBuf>,
}

/// Why there is no TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No certificate where one should be.
    #[error("{} has no certificate in PEM form (-----BEGIN CERTIFICATE-----)", .0.display())]
    NoCertificate(PathBuf),
    /// A key that others can read.
    #[error(transparent)]
    Mode(#[from] FileError),
    /// Certificate and key do not fit, or rustls cannot use them.
    #[error("{} cannot be used: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The TLS of a listener, whose certificate can be replaced while it runs.
#[derive(Debug)]
pub struct ServerTls {
    files: TlsFiles,
    access: Arc<Access>,
    current: RwLock<Arc<ServerConfig>>,
}

impl ServerTls {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// When they cannot be read or do not fit, or others can read the key.
    pub fn load(files: TlsFiles, access: Arc<Access>) -> Result<Self, TlsError> {
        let (config, _) = server_config(&files, &access)?;
        Ok(Self { files, access, current: RwLock::new(Arc::new(config)) })
    }

    /// Reads them again: connections from now on see the new certificate, those that are there stay. Returns its
    /// fingerprint.
    ///
    /// # Errors
    /// As [`ServerTls::load`]; the old certificate stays in use.
    pub fn reload(&self) -> Result<Fingerprint, TlsError> {
        let (config, fingerprint) = server_config(&self.files, &self.access)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        Ok(fingerprint)
    }

    /// What a new connection is accepted with.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads and checks the files of a listener, and forgets them.
///
/// # Errors
/// As [`ServerTls::load`].
pub fn check(files: &TlsFiles) -> Result<(), TlsError> {
    let (certificates, key) = identity(&files.certificate, &files.key)?;
    if let Some(ca) = &files.client_ca {
        roots(ca)?;
    }
    let provider = Arc::new(ring::default_provider());
    builder(&provider)
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map(drop)
        .map_err(|error| TlsError::Unusable { path: files.certificate.clone(), reason: error.to_string() })
}

fn builder(provider: &Arc<CryptoProvider>) -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has the cipher suites of TLS 1.3")
}

fn server_config(files: &TlsFiles, access: &Arc<Access>) -> Result<(ServerConfig, Fingerprint), TlsError> {
    let provider = Arc::new(ring::default_provider());
    let (certificates, key) = identity(&files.certificate, &files.key)?;
    let fingerprint = Fingerprint::of(&certificates[0]);
    let authority = files.client_ca.as_deref().map(|ca| authority(ca, &provider)).transpose()?;
    let verifier = Registered {
        access: access.clone(),
        authority,
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = builder(&provider)
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(certificates, key)
        .map_err(|error| TlsError::Unusable { path: files.certificate.clone(), reason: error.to_string() })?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((config, fingerprint))
}

/// TLS for a connection of ours to a broker that `ca` vouches for, with a certificate of our own where the broker
/// wants one.
///
/// # Errors
/// When a file cannot be read or used.
pub fn client_config(ca: &Path, own: Option<(&Path, &Path)>) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has the cipher suites of TLS 1.3")
        .with_root_certificates(roots(ca)?);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let (certificates, key) = identity(certificate, key)?;
            builder.with_client_auth_cert(certificates, key).map_err(|error| TlsError::Unusable {
                path: certificate.to_owned(),
                reason: error.to_string(),
            })?
        }
    };
    Ok(Arc::new(config))
}

/// The first certificate of a PEM file: a device's.
///
/// # Errors
/// When there is none.
pub fn fingerprint(path: &Path) -> Result<Fingerprint, TlsError> {
    Ok(Fingerprint::of(&certificates(path)?[0]))
}

/// A chain of at least one certificate, and its key.
fn identity(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(certificate)?;
    // Some systems let a group read keys, which is their decision.
    check_mode(key, 0o007, "read or change it", "o-rwx")?;
    let pem = read(key)?;
    let key = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| TlsError::Unusable { path: key.to_owned(), reason: error.to_string() })?;
    Ok((chain, key))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|error| TlsError::Unusable { path: path.to_owned(), reason: error.to_string() })?;
    if all.is_empty() { Err(TlsError::NoCertificate(path.to_owned())) } else { Ok(all) }
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    // A system's bundle may have some that rustls does not read.
    let (usable, _) = roots.add_parsable_certificates(certificates(path)?);
    let reason = "none of its certificates is of an authority".to_owned();
    if usable > 0 { Ok(roots) } else { Err(TlsError::Unusable { path: path.to_owned(), reason }) }
}

fn authority(path: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider.clone())
        .build()
        .map_err(|error| TlsError::Unusable { path: path.to_owned(), reason: error.to_string() })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let error = |reason: String| TlsError::Read { path: path.to_owned(), reason };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(PEM_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|reason| error(reason.to_string()))?;
    if bytes.len() as u64 > PEM_BYTES_MAX {
        return Err(error(format!("it is larger than {PEM_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// Accepts certificates that are registered, and signed by the authority where there is one.
#[derive(Debug)]
struct Registered {
    access: Arc<Access>,
    authority: Option<Arc<dyn ClientCertVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Registered {
    fn client_auth_mandatory(&self) -> bool {
        // A device without a certificate has a password.
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.authority.as_ref().map_or(&[], |authority| authority.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let registry = self.access.registry();
        if registry.is_none_or(|registry| registry.owner(&Fingerprint::of(end_entity)).is_none()) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        match &self.authority {
            Some(authority) => authority.verify_client_cert(end_entity, intermediates, now),
            None => Ok(ClientCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A self-signed certificate and its key, written to a folder.
    fn files(folder: &Path) -> TlsFiles {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let files =
            TlsFiles { certificate: folder.join("c.pem"), key: folder.join("c.key"), client_ca: None };
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        write_key(&files.key, &made.signing_key.serialize_pem());
        files
    }

    fn write_key(path: &Path, pem: &str) {
        use std::io::Write as _;
        let mut file =
            super::super::file::private().create(true).write(true).truncate(true).open(path).unwrap();
        file.write_all(pem.as_bytes()).unwrap();
    }

    #[test]
    fn a_certificate_is_replaced_and_a_bad_one_is_not_taken() {
        let place = tempfile::tempdir().unwrap();
        let files = files(place.path());
        let access = Arc::new(Access::open(place.path()).unwrap());
        let tls = ServerTls::load(files.clone(), access).unwrap();
        let first = tls.reload().unwrap();
        assert_eq!(first, fingerprint(&files.certificate).unwrap());
        let before = tls.current();
        // The certificate of another key.
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&files.certificate, other.cert.pem()).unwrap();
        assert!(tls.reload().unwrap_err().to_string().contains("c.pem"));
        assert!(Arc::ptr_eq(&before, &tls.current()));
        write_key(&files.key, &other.signing_key.serialize_pem());
        assert_ne!(tls.reload().unwrap(), first);
        assert!(!Arc::ptr_eq(&before, &tls.current()));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let place = tempfile::tempdir().unwrap();
        let good = files(place.path());
        let absent = place.path().join("absent.pem");
        let text = place.path().join("text.pem");
        write_key(&text, "no PEM");
        let with = |change: &dyn Fn(&mut TlsFiles)| {
            let mut files = good.clone();
            change(&mut files);
            check(&files).unwrap_err().to_string()
        };
        check(&good).unwrap();
        assert!(with(&|files| files.certificate.clone_from(&absent)).contains("cannot read"));
        assert!(with(&|files| files.certificate.clone_from(&text)).contains("no certificate"));
        assert!(with(&|files| files.key.clone_from(&text)).contains("text.pem cannot be used"));
        assert!(with(&|files| files.client_ca = Some(text.clone())).contains("no certificate"));
        assert!(client_config(&absent, None).is_err());
        client_config(&good.certificate, Some((&good.certificate, &good.key))).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(&good.key, std::fs::Permissions::from_mode(0o644)).unwrap();
            assert!(check(&good).unwrap_err().to_string().contains("chmod o-rwx"));
        }
    }
}
