//! Settings of security: who may connect to us, and how we prove ourselves to a broker.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;

use super::File;
use crate::access::tls::TlsFiles;

/// Where the registry of devices is, next to the gallery.
const ACCESS: &str = "access";

/// What can be set, as it was given: nothing is checked yet. These are flags of the command line, too.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Security")]
pub struct RawSecurity {
    /// Folder of the registry of devices and the audit log [default: `access` in the gallery's folder]
    #[arg(long, env = "GLIMPSE_ACCESS", value_name = "DIR")]
    pub access: Option<PathBuf>,
    /// Address of the embedded broker for TLS 1.3, as 0.0.0.0:8883; needs a registered device to serve other machines
    #[arg(long, env = "GLIMPSE_LISTEN_TLS", value_name = "ADDRESS:PORT")]
    pub listen_tls: Option<String>,
    /// The server's certificate and those between it and its authority (PEM); read again on SIGHUP
    #[arg(long, env = "GLIMPSE_TLS_CERTIFICATE", value_name = "PEM")]
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's private key (PEM); read again on SIGHUP
    #[arg(long, env = "GLIMPSE_TLS_KEY", value_name = "PEM")]
    pub tls_key: Option<PathBuf>,
    /// Authority that must have signed the certificates of devices, beside their being registered (PEM)
    #[arg(long, env = "GLIMPSE_TLS_CLIENT_CA", value_name = "PEM")]
    pub tls_client_ca: Option<PathBuf>,
    /// Let `--listen` be an address that other machines reach without TLS: passwords cross the network in the clear
    #[arg(long, env = "GLIMPSE_INSECURE_PLAINTEXT", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub insecure_plaintext: Option<bool>,
    /// Our user name at the external broker
    #[arg(long, env = "GLIMPSE_BROKER_USERNAME", value_name = "NAME")]
    pub broker_username: Option<String>,
    /// File with our password at the external broker
    #[arg(long, env = "GLIMPSE_BROKER_PASSWORD_FILE", value_name = "FILE")]
    pub broker_password_file: Option<PathBuf>,
    /// Authority of the external broker's certificate (PEM), for `--broker mqtts://HOST:PORT`
    #[arg(long, env = "GLIMPSE_BROKER_CA", value_name = "PEM")]
    pub broker_ca: Option<PathBuf>,
    /// Our certificate at the external broker (PEM)
    #[arg(long, env = "GLIMPSE_BROKER_CERTIFICATE", value_name = "PEM")]
    pub broker_certificate: Option<PathBuf>,
    /// The private key of our certificate at the external broker (PEM)
    #[arg(long, env = "GLIMPSE_BROKER_KEY", value_name = "PEM")]
    pub broker_key: Option<PathBuf>,
}

/// How the embedded broker listens to other machines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListenSecurity {
    /// Address for TLS; then `tls` is there, too.
    pub listen_tls: Option<SocketAddr>,
    /// Certificate and key.
    pub tls: Option<TlsFiles>,
    /// Whether other machines may connect without TLS.
    pub insecure_plaintext: bool,
}

/// How we prove ourselves to an external broker, and it to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientSecurity {
    /// User name, and the file of the password.
    pub login: Option<(String, PathBuf)>,
    /// For `mqtts://`.
    pub tls: Option<ClientTls>,
}

/// TLS to an external broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// Who vouches for the broker.
    pub ca: PathBuf,
    /// Our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl RawSecurity {
    /// Fields of the file under those of `self`.
    pub(super) fn or_file(self, file: &mut File, base: &Path) -> Self {
        let mut path = |name: &str, own: Option<PathBuf>| own.or(file.text(name).map(|path| base.join(path)));
        let access = path("access", self.access);
        let tls_certificate = path("tls_certificate", self.tls_certificate);
        let tls_key = path("tls_key", self.tls_key);
        let tls_client_ca = path("tls_client_ca", self.tls_client_ca);
        let broker_password_file = path("broker_password_file", self.broker_password_file);
        let broker_ca = path("broker_ca", self.broker_ca);
        let broker_certificate = path("broker_certificate", self.broker_certificate);
        let broker_key = path("broker_key", self.broker_key);
        Self {
            access,
            listen_tls: self.listen_tls.or(file.text("listen_tls")),
            tls_certificate,
            tls_key,
            tls_client_ca,
            insecure_plaintext: self.insecure_plaintext.or(file.boolean("insecure_plaintext")),
            broker_username: self.broker_username.or(file.text("broker_username")),
            broker_password_file,
            broker_ca,
            broker_certificate,
            broker_key,
        }
    }

    /// The access folder.
    pub(super) fn access(&self, gallery: &Path) -> PathBuf {
        self.access.clone().unwrap_or_else(|| gallery.join(ACCESS))
    }

    /// For the embedded broker; what is wrong is added to `problems`.
    pub(super) fn of_listener(self, problems: &mut Vec<String>) -> ListenSecurity {
        let for_external = [
            ("broker_username", self.broker_username.is_some()),
            ("broker_password_file", self.broker_password_file.is_some()),
            ("broker_ca", self.broker_ca.is_some()),
            ("broker_certificate", self.broker_certificate.is_some()),
            ("broker_key", self.broker_key.is_some()),
        ];
        complain(&for_external, "is for an external broker: name it with broker", problems);
        let listen_tls = self.listen_tls.and_then(|text| {
            let address = text.parse();
            if address.is_err() {
                problems.push(format!(
                    "listen_tls is {text}, and must be an address and a port, as 0.0.0.0:8883"
                ));
            }
            address.ok()
        });
        let tls = match (self.tls_certificate, self.tls_key) {
            (Some(certificate), Some(key)) => {
                Some(TlsFiles { certificate, key, client_ca: self.tls_client_ca })
            }
            (None, None) if listen_tls.is_none() && self.tls_client_ca.is_none() => None,
            _ => {
                problems
                    .push("TLS needs listen_tls, tls_certificate and tls_key: name all of them".to_owned());
                None
            }
        };
        if tls.is_some() && listen_tls.is_none() {
            problems.push("tls_certificate is there, and listen_tls, the address for TLS, is not".to_owned());
        }
        ListenSecurity { listen_tls, tls, insecure_plaintext: self.insecure_plaintext.unwrap_or(false) }
    }

    /// For our client at an external broker; what is wrong is added to `problems`.
    pub(super) fn of_client(self, is_tls: bool, problems: &mut Vec<String>) -> ClientSecurity {
        let for_embedded = [
            ("listen_tls", self.listen_tls.is_some()),
            ("tls_certificate", self.tls_certificate.is_some()),
            ("tls_key", self.tls_key.is_some()),
            ("tls_client_ca", self.tls_client_ca.is_some()),
            ("insecure_plaintext", self.insecure_plaintext == Some(true)),
        ];
        complain(&for_embedded, "is for the embedded broker, and broker names an external one", problems);
        let login = match (self.broker_username, self.broker_password_file) {
            (None, None) => None,
            (Some(name), Some(file)) if (1..=256).contains(&name.len()) => Some((name, file)),
            (Some(_), Some(_)) => {
                problems.push("broker_username must have 1 to 256 bytes".to_owned());
                None
            }
            _ => {
                problems.push("broker_username and broker_password_file need each other".to_owned());
                None
            }
        };
        let identity = match (self.broker_certificate, self.broker_key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                problems.push("broker_certificate and broker_key need each other".to_owned());
                None
            }
        };
        let tls = match (is_tls, self.broker_ca) {
            (true, Some(ca)) => Some(ClientTls { ca, identity }),
            (false, None) if identity.is_none() => None,
            (true, None) => {
                problems.push(
                    "no broker_ca: an mqtts:// broker needs the authority that signed its certificate (for one of the public \
                     authorities, your system's bundle, as /etc/ssl/certs/ca-certificates.crt)"
                        .to_owned(),
                );
                None
            }
            (false, _) => {
                problems.push(
                    "broker_ca and broker_certificate are for TLS: write the broker as mqtts://HOST:PORT"
                        .to_owned(),
                );
                None
            }
        };
        ClientSecurity { login, tls }
    }
}

fn complain(settings: &[(&str, bool)], reason: &str, problems: &mut Vec<String>) {
    problems
        .extend(settings.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| format!("{name} {reason}")));
}

#[cfg(test)]
mod tests {
    use super::super::{BrokerConfig, RawConfig, ServeConfig};
    use super::*;

    fn read(text: &str) -> Result<ServeConfig, String> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("gallery.toml");
        std::fs::write(&path, format!("gallery = \"/g\"\nbundle = \"/b\"\n{text}")).unwrap();
        let mut problems = Vec::new();
        let raw = RawConfig::default().or_file(&path, &mut problems);
        raw.validate(problems).map_err(|problems| problems.to_string())
    }

    #[cfg(feature = "embedded-broker")]
    #[test]
    fn a_listener_for_tls_has_certificate_and_key() {
        let config =
            read("listen_tls = \"0.0.0.0:8883\"\ntls_certificate = \"/c\"\ntls_key = \"/k\"\ntls_client_ca = \"/a\"\n")
                .unwrap();
        assert_eq!(config.access, Path::new("/g/access"));
        let BrokerConfig::Embedded { security, .. } = config.broker else { panic!("embedded") };
        let files = TlsFiles { certificate: "/c".into(), key: "/k".into(), client_ca: Some("/a".into()) };
        assert_eq!(security.tls, Some(files));
        assert_eq!(security.listen_tls, Some("0.0.0.0:8883".parse().unwrap()));
        for (text, problem) in [
            ("listen_tls = \"0.0.0.0:8883\"", "tls_certificate and tls_key"),
            ("tls_certificate = \"c\"\ntls_key = \"k\"", "listen_tls, the address for TLS, is not"),
            ("tls_client_ca = \"c\"", "name all of them"),
            ("listen_tls = \"nowhere\"", "listen_tls is nowhere"),
            ("broker_ca = \"c\"", "broker_ca is for an external broker"),
            ("listen = \"0.0.0.0:1883\"", "insecure_plaintext = true"),
            ("insecure_plaintext = 1", "insecure_plaintext must be true or false"),
        ] {
            let problems = read(text).unwrap_err();
            assert!(problems.contains(problem), "{text}: {problems}");
        }
        read("listen = \"0.0.0.0:1883\"\ninsecure_plaintext = true\naccess = \"who\"").unwrap();
    }

    #[test]
    fn an_external_broker_is_met_with_a_login_or_a_certificate() {
        let config = read(
            "broker = \"mqtts://b.lan:8883\"\nbroker_ca = \"/ca\"\nbroker_username = \"me\"\nbroker_password_file = \"/p\"\n\
             broker_certificate = \"/c\"\nbroker_key = \"/k\"\n",
        );
        let BrokerConfig::External { host, port, security, .. } = config.unwrap().broker else {
            panic!("external")
        };
        assert_eq!((host.as_str(), port), ("b.lan", 8883));
        assert_eq!(security.login, Some(("me".to_owned(), "/p".into())));
        let identity = Some(("/c".into(), "/k".into()));
        assert_eq!(security.tls, Some(ClientTls { ca: "/ca".into(), identity }));
        for (text, problem) in [
            ("broker = \"mqtts://b:1\"", "no broker_ca"),
            ("broker = \"b:1\"\nbroker_ca = \"c\"", "mqtts://HOST:PORT"),
            ("broker = \"b:1\"\nbroker_username = \"me\"", "need each other"),
            ("broker = \"b:1\"\nbroker_key = \"k\"", "need each other"),
            ("broker = \"b:1\"\nlisten_tls = \"0.0.0.0:1\"", "listen_tls is for the embedded broker"),
        ] {
            let problems = read(text).unwrap_err();
            assert!(problems.contains(problem), "{text}: {problems}");
        }
    }
}
