//! An authority of one's own, and what it signs: a key and a certificate for each device.
//!
//! The authority is a folder with `ca.pem`, which servers are given as `tls_client_ca`, and `ca.key`, which signs, and is for
//! its owner's eyes only.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use glimpse_protocol::DeviceId;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

use crate::files::{private_folder, write_new};

/// The name of every such authority: who signed is told by the key.
const NAME: &str = "Glimpse devices";

/// Keys that sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub certificate: PathBuf,
}

/// A new key, and the certificate of it, both in PEM.
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Authority {
    /// Makes one in `folder`; one that is there already stays.
    ///
    /// # Errors
    /// A folder that holds one, or cannot be written.
    pub fn init(folder: &Path) -> anyhow::Result<PathBuf> {
        let certificate = folder.join("ca.pem");
        if certificate.exists() || folder.join("ca.key").exists() {
            bail!(
                "{} holds an authority already: devices that it signed for would be strangers to another",
                folder.display()
            );
        }
        private_folder(folder)?;
        let key = KeyPair::generate().context("cannot make a key")?;
        let issuer = CertifiedIssuer::self_signed(parameters(), key).context("cannot sign the authority")?;
        write_new(&folder.join("ca.key"), issuer.key().serialize_pem().as_bytes(), 0o600)?;
        write_new(&certificate, issuer.pem().as_bytes(), 0o644)?;
        Ok(certificate)
    }

    /// The one in `folder`.
    ///
    /// # Errors
    /// None is there, or its key cannot be used.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let certificate = folder.join("ca.pem");
        let key = folder.join("ca.key");
        let text = std::fs::read_to_string(&key).with_context(|| {
            format!("cannot read {}: `glimpse-firmware ca init` makes an authority", key.display())
        })?;
        let pair =
            KeyPair::from_pem(&text).with_context(|| format!("{} is no private key", key.display()))?;
        Ok(Self { issuer: Issuer::new(parameters(), pair), certificate })
    }

    /// A new key for a device, and a certificate of it that lets the device in and nobody else serve.
    ///
    /// # Errors
    /// A system without random numbers.
    pub fn sign(&self, device: &DeviceId) -> anyhow::Result<Identity> {
        let key = KeyPair::generate().context("cannot make a key")?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, device.as_str());
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        parameters.use_authority_key_identifier_extension = true;
        let certificate = parameters.signed_by(&key, &self.issuer).context("cannot sign a certificate")?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn parameters() -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, NAME);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters
}
