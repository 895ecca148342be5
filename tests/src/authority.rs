//! A certificate authority for tests, and certificates that it signs, or that nobody does.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key, for its owner's eyes only.
    pub key: PathBuf,
}

impl Identity {
    /// Both as text, for flags of a command.
    pub fn texts(&self) -> [&str; 2] {
        [&self.certificate, &self.key].map(|path| path.to_str().expect("temporary folders have plain names"))
    }

    /// Both as paths.
    pub fn paths(&self) -> (&Path, &Path) {
        (&self.certificate, &self.key)
    }

    fn write(folder: &Path, name: &str, certificate: &str, key: &KeyPair) -> anyhow::Result<Self> {
        let paths =
            Self { certificate: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) };
        std::fs::write(&paths.certificate, certificate)?;
        private(&paths.key, &key.serialize_pem())?;
        Ok(paths)
    }
}

/// An authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
    /// Its certificate, to be trusted.
    pub certificate: PathBuf,
}

impl Authority {
    /// A new one, whose files are `NAME.pem` and those that it signs, in `folder`.
    ///
    /// # Errors
    /// Where it cannot be made or written.
    pub fn new(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let mut parameters = named(name)?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
        let certificate = folder.join(format!("{name}.pem"));
        std::fs::write(&certificate, issuer.pem()).context("cannot write a certificate")?;
        Ok(Self { issuer, folder: folder.to_owned(), certificate })
    }

    /// A certificate for a server at localhost, which an emulated board sees at 10.0.2.2, signed.
    ///
    /// # Errors
    /// Where it cannot be made or written.
    pub fn server(&self, name: &str) -> anyhow::Result<Identity> {
        let mut parameters =
            CertificateParams::new(["localhost", "127.0.0.1", "10.0.2.2"].map(str::to_owned))?;
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(name, &parameters)
    }

    /// A certificate for a device, signed.
    ///
    /// # Errors
    /// Where it cannot be made or written.
    pub fn device(&self, name: &str) -> anyhow::Result<Identity> {
        let mut parameters = named(name)?;
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(name, &parameters)
    }

    fn sign(&self, name: &str, parameters: &CertificateParams) -> anyhow::Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &*self.issuer)?;
        Identity::write(&self.folder, name, &certificate.pem(), &key)
    }
}

/// A certificate for a device that only its own key signed.
///
/// # Errors
/// Where it cannot be made or written.
pub fn self_signed(folder: &Path, name: &str) -> anyhow::Result<Identity> {
    let key = KeyPair::generate()?;
    let mut parameters = named(name)?;
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = parameters.self_signed(&key)?;
    Identity::write(folder, name, &certificate.pem(), &key)
}

fn named(name: &str) -> anyhow::Result<CertificateParams> {
    let mut parameters = CertificateParams::new(Vec::<String>::new())?;
    parameters.distinguished_name.push(DnType::CommonName, name);
    Ok(parameters)
}

/// Writes a file that only its owner can read.
///
/// # Errors
/// Where it cannot be written.
pub fn private(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).write(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
