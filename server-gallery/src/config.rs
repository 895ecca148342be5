//! The server's configuration: a TOML file, the environment and flags, checked as a whole.
//!
//! A flag comes before an environment variable, that before the file, and that before the default. Every problem is
//! reported, not only the first. Paths in the file are relative to the file.
//!
//! ```toml
//! gallery = "gallery"            # folder of the store
//! bundle = "models/demo"         # folder of the space bundle
//! listen = "127.0.0.1:1883"      # embedded broker; or
//! # broker = "broker.lan:1883"   # an external one
//! # client_id = "gallery-1"      # our name there; fixed, and another for each server
//! clients_max = 1000             # of the embedded broker
//! # access = "gallery/access"    # registry of devices and audit log
//! # listen_tls = "0.0.0.0:8883"  # other machines, by TLS 1.3 and with credentials
//! # tls_certificate = "server.pem"
//! # tls_key = "server.key"
//! # tls_client_ca = "ca.pem"     # who signs the certificates of devices
//! # insecure_plaintext = false   # other machines without TLS
//! # broker_username = "gallery"  # at an external broker
//! # broker_password_file = "broker.password"
//! # broker_ca = "ca.pem"         # for broker = "mqtts://HOST:PORT"
//! # broker_certificate = "client.pem"
//! # broker_key = "client.key"
//! queries_waiting_max = 256      # more are answered `busy`
//! latency_budget_ms = 20         # queries that are searched together take no longer
//! device_rate_max = 100.0        # queries a second and device, on average; more are answered `busy`
//! exact = false                  # compare with every feature
//! # rerank = 100                 # candidates ranked exactly, instead of as many as were measured to be enough
//! # recall = 0.95                # share of the nearest images that inverted lists should not miss
//! # expand = 5                   # search again with each query expanded by its nearest images
//! http = "127.0.0.1:8080"        # console, health and metrics; "none" for none
//! # metrics_token = "token"      # file with the token that /metrics asks other machines for
//! # unknown = "learned"          # photos of nothing in the gallery get no match; or a similarity, as 0.4
//! ```

mod security;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use security::{ClientSecurity, ClientTls, ListenSecurity, RawSecurity};
use toml::{Table, Value};

use crate::http::HttpConfig;
use crate::matcher::{MatcherConfig, UnknownPhotos};
use crate::mqtt::Pacing;

/// Port of MQTT without TLS.
const PORT: u16 = 1883;

/// What an external broker's address begins with where it is met by TLS.
const TLS_SCHEME: &str = "mqtts://";
/// Port of the console.
const HTTP_PORT: u16 = 8080;

/// What can be set, as it was given: nothing is checked yet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RawConfig {
    /// Folder of the store.
    pub gallery: Option<PathBuf>,
    /// Folder of the space bundle.
    pub bundle: Option<PathBuf>,
    /// Address of the embedded broker.
    pub listen: Option<String>,
    /// Address of an external broker.
    pub broker: Option<String>,
    /// Client id at the external broker.
    pub client_id: Option<String>,
    /// Clients of the embedded broker.
    pub clients_max: Option<i64>,
    /// Queries that wait.
    pub queries_waiting_max: Option<i64>,
    /// Time for a batch.
    pub latency_budget_ms: Option<i64>,
    /// Queries a second and device.
    pub device_rate_max: Option<f64>,
    /// Exact search.
    pub exact: Option<bool>,
    /// Candidates ranked exactly.
    pub rerank: Option<i64>,
    /// Share of the nearest images to be found.
    pub recall: Option<f64>,
    /// Images that expand a query.
    pub expand: Option<i64>,
    /// `matched`, `learned`, or a similarity.
    pub unknown: Option<String>,
    /// Address of the console, or `none`.
    pub http: Option<String>,
    /// File with the token for metrics.
    pub metrics_token: Option<PathBuf>,
    /// Who may connect, and how we prove ourselves.
    pub security: RawSecurity,
}

/// A configuration that can be served.
#[derive(Debug, Clone, PartialEq)]
pub struct ServeConfig {
    /// Folder of the store.
    pub gallery: PathBuf,
    /// Folder of the space bundle.
    pub bundle: PathBuf,
    /// Folder of the registry of devices and the audit log.
    pub access: PathBuf,
    /// Which broker.
    pub broker: BrokerConfig,
    /// Queries that wait for the matcher; more are answered `busy`.
    pub queries_waiting_max: u16,
    /// How many are searched together, and how often a device may ask.
    pub pacing: Pacing,
    /// How to search.
    pub matcher: MatcherConfig,
    /// Console, health and metrics; `None`: nothing is served over HTTP.
    pub http: Option<HttpConfig>,
}

/// Which broker carries the messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerConfig {
    /// Ours, in this process.
    Embedded {
        /// A loopback address, unless the configuration insists; port 0 is any free one.
        listen: SocketAddr,
        /// Clients at a time.
        clients_max: u16,
        /// How it listens to other machines.
        security: ListenSecurity,
    },
    /// One that runs elsewhere.
    External {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
        /// Our client id there.
        client_id: String,
        /// How we prove ourselves there.
        security: ClientSecurity,
    },
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration has {} problem{}:{}", .0.len(), if .0.len() == 1 { "" } else { "s" }, .0.iter().fold(String::new(), |list, problem| list + "\n  " + problem))]
pub struct Problems(pub Vec<String>);

impl RawConfig {
    /// Fields of the file that are set, over those of `self`; what is wrong with the file is added to `problems`.
    #[must_use]
    pub fn or_file(self, path: &Path, problems: &mut Vec<String>) -> Self {
        let shown = path.display();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                problems.push(format!("cannot read {shown}: {error}"));
                return self;
            }
        };
        let table = match text.parse::<Table>() {
            Ok(table) => table,
            Err(error) => {
                problems.push(format!("{shown}: {error}"));
                return self;
            }
        };
        let mut file = File { table, problems: Vec::new() };
        let base = path.parent().unwrap_or(Path::new(""));
        let merged = Self {
            gallery: self.gallery.or(file.text("gallery").map(|path| base.join(path))),
            bundle: self.bundle.or(file.text("bundle").map(|path| base.join(path))),
            // A broker from one source and an address from another are a choice, not a contradiction.
            listen: self.listen.clone().or(file.text("listen").filter(|_| self.broker.is_none())),
            broker: self.broker.or(file.text("broker").filter(|_| self.listen.is_none())),
            client_id: self.client_id.or(file.text("client_id")),
            clients_max: self.clients_max.or(file.number("clients_max")),
            queries_waiting_max: self.queries_waiting_max.or(file.number("queries_waiting_max")),
            latency_budget_ms: self.latency_budget_ms.or(file.number("latency_budget_ms")),
            device_rate_max: self.device_rate_max.or(file.fraction("device_rate_max")),
            exact: self.exact.or(file.boolean("exact")),
            rerank: self.rerank.or(file.number("rerank")),
            recall: self.recall.or(file.fraction("recall")),
            expand: self.expand.or(file.number("expand")),
            unknown: self.unknown.or(file.text_or_number("unknown")),
            http: self.http.or(file.text("http")),
            metrics_token: self.metrics_token.or(file.text("metrics_token").map(|path| base.join(path))),
            security: self.security.or_file(&mut file, base),
        };
        let unknown = file.table.keys().map(|key| format!("unknown field `{key}`"));
        problems.extend(
            unknown.chain(file.problems.iter().cloned()).map(|problem| format!("{shown}: {problem}")),
        );
        merged
    }

    /// Checks every field.
    ///
    /// # Errors
    /// All problems, after those found `earlier`.
    pub fn validate(self, earlier: Vec<String>) -> Result<ServeConfig, Problems> {
        let mut problems = earlier;
        let mut folder = |name: &str, path: Option<PathBuf>| {
            if path.is_none() {
                problems.push(format!(
                    "no {name}: name its folder with --{name} or GLIMPSE_{}",
                    name.to_uppercase()
                ));
            }
            path.unwrap_or_default()
        };
        let (gallery, bundle) = (folder("gallery", self.gallery), folder("bundle", self.bundle));
        let mut within = |name: &str, value: Option<i64>, default: u16, most: u16| {
            let value = value.unwrap_or(i64::from(default));
            u16::try_from(value).ok().filter(|value| (1..=most).contains(value)).unwrap_or_else(|| {
                problems.push(format!("{name} is {value}, and must be 1 to {most}"));
                default
            })
        };
        let clients_max = within("clients_max", self.clients_max, 1000, 10_000);
        let queries_waiting_max = within("queries_waiting_max", self.queries_waiting_max, 256, 16_384);
        let latency_budget = within("latency_budget_ms", self.latency_budget_ms, 20, 1000);
        let rerank = self.rerank.map(|rerank| usize::from(within("rerank", Some(rerank), 100, u16::MAX)));
        let expand = self.expand.map_or(0, |expand| usize::from(within("expand", Some(expand), 1, 100)));
        let device_rate_max = self.device_rate_max.unwrap_or(Pacing::default().device_rate_max);
        if !(0.01..=10_000.0).contains(&device_rate_max) {
            problems.push(format!("device_rate_max is {device_rate_max}, and must be 0.01 to 10000"));
        }
        let recall = self.recall.map(|recall| {
            if !(0.5..=1.0).contains(&recall) {
                problems.push(format!("recall is {recall}, and must be 0.5 to 1"));
            }
            recall as f32
        });
        let unknown = self.unknown.map_or(Ok(UnknownPhotos::Matched), |text| unknown_photos(&text));
        let unknown = unknown.unwrap_or_else(|problem| {
            problems.push(problem);
            UnknownPhotos::Matched
        });
        let access = self.security.access(&gallery);
        let http = http(self.http.as_deref(), self.metrics_token).unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });
        let broker = match (self.listen, self.broker) {
            (Some(_), Some(_)) => Err("listen and broker exclude each other: the first is for the embedded broker, the second names an external one".to_owned()),
            (listen, None) => {
                embedded(listen.as_deref(), clients_max, self.security.of_listener(&mut problems))
            }
            (None, Some(broker)) => {
                let security = self.security.of_client(broker.starts_with(TLS_SCHEME), &mut problems);
                external(&broker, self.client_id, &gallery, security)
            }
        };
        match broker {
            Ok(broker) if problems.is_empty() => {
                let exact = self.exact.unwrap_or(false);
                let matcher =
                    MatcherConfig { exact, rerank, recall, unknown, expand, ..MatcherConfig::default() };
                let latency_budget = Duration::from_millis(latency_budget.into());
                let pacing = Pacing { latency_budget, device_rate_max };
                Ok(ServeConfig {
                    gallery,
                    bundle,
                    access,
                    broker,
                    queries_waiting_max,
                    pacing,
                    matcher,
                    http,
                })
            }
            Ok(_) => Err(Problems(problems)),
            Err(problem) => {
                problems.push(problem);
                Err(Problems(problems))
            }
        }
    }
}

/// An address, or `none`.
fn http(text: Option<&str>, metrics_token: Option<PathBuf>) -> Result<Option<HttpConfig>, String> {
    let listen = match text {
        Some("none") => return Ok(None),
        None => SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, HTTP_PORT)),
        Some(text) => {
            let problem = || {
                format!(
                    "http is {text}, and must be an address and a port, as 127.0.0.1:{HTTP_PORT}, or none"
                )
            };
            address(text).ok_or_else(problem)?
        }
    };
    Ok(Some(HttpConfig { listen, metrics_token }))
}

/// An address and a port; `localhost` is one of the addresses.
fn address(text: &str) -> Option<SocketAddr> {
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    numeric.as_deref().unwrap_or(text).parse().ok()
}

/// `matched`, `learned`, or a cosine.
///
/// # Errors
/// What else it is.
pub fn unknown_photos(text: &str) -> Result<UnknownPhotos, String> {
    match (text, text.parse::<f32>()) {
        ("matched", _) => Ok(UnknownPhotos::Matched),
        ("learned", _) => Ok(UnknownPhotos::Learned),
        (_, Ok(similarity)) if (-1.0..=1.0).contains(&similarity) => Ok(UnknownPhotos::Below(similarity)),
        _ => Err(format!("unknown is {text}, and must be matched, learned, or a similarity from -1 to 1")),
    }
}

#[cfg(not(feature = "embedded-broker"))]
fn embedded(_: Option<&str>, _: u16, _: ListenSecurity) -> Result<BrokerConfig, String> {
    Err("this program was built without its broker: name an external one with --broker HOST:PORT".to_owned())
}

#[cfg(feature = "embedded-broker")]
fn embedded(
    listen: Option<&str>,
    clients_max: u16,
    security: ListenSecurity,
) -> Result<BrokerConfig, String> {
    let listen = match listen {
        None => SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, PORT)),
        Some(text) => {
            let problem =
                || format!("listen is {text}, and must be an address and a port, as 127.0.0.1:{PORT}");
            address(text).ok_or_else(problem)?
        }
    };
    crate::broker::Broker::check_address(listen, security.insecure_plaintext)
        .map_err(|error| error.to_string())?;
    Ok(BrokerConfig::Embedded { listen, clients_max, security })
}

fn external(
    broker: &str,
    client_id: Option<String>,
    gallery: &Path,
    security: ClientSecurity,
) -> Result<BrokerConfig, String> {
    let problem = || format!("broker is {broker}, and must be HOST:PORT, as broker.lan:{PORT}");
    let address = broker.strip_prefix("mqtt://").or_else(|| broker.strip_prefix(TLS_SCHEME));
    let address = address.unwrap_or(broker).trim_end_matches('/');
    let (host, port) = address.rsplit_once(':').ok_or_else(problem)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(problem)?;
    if host.is_empty() || host.contains(['/', ' ', '@']) {
        return Err(problem());
    }
    let client_id = client_id.unwrap_or_else(|| default_client_id(gallery));
    if client_id.is_empty() || client_id.len() > 64 || client_id.chars().any(char::is_control) {
        return Err("client_id must have 1 to 64 characters".to_owned());
    }
    Ok(BrokerConfig::External { host, port, client_id, security })
}

/// Fixed, so that a restarted server takes up its session; and another on every machine and for every gallery, because a
/// broker disconnects the first of two clients with one id.
fn default_client_id(gallery: &Path) -> String {
    let machine =
        std::fs::read("/etc/machine-id").or_else(|_| std::fs::read("/etc/hostname")).unwrap_or_default();
    let gallery = std::fs::canonicalize(gallery).unwrap_or_else(|_| gallery.to_owned());
    let mut hasher = blake3::Hasher::new_derive_key("glimpse gallery mqtt client id v1");
    hasher.update(&machine).update(gallery.as_os_str().as_encoded_bytes());
    format!("glimpse-gallery-{}", &hasher.finalize().to_hex()[..12])
}

/// A file being read: fields are taken out, so that what remains is unknown.
struct File {
    table: Table,
    problems: Vec<String>,
}

impl File {
    fn take<T>(&mut self, name: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.table.remove(name)?;
        let read = read(&value);
        if read.is_none() {
            self.problems.push(format!("{name} must be {expected}, and is {}", value.type_str()));
        }
        read
    }

    fn text(&mut self, name: &str) -> Option<String> {
        self.take(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    fn number(&mut self, name: &str) -> Option<i64> {
        self.take(name, "an integer", Value::as_integer)
    }

    fn fraction(&mut self, name: &str) -> Option<f64> {
        self.take(name, "a number", |value| value.as_float().or(value.as_integer().map(|x| x as f64)))
    }

    fn text_or_number(&mut self, name: &str) -> Option<String> {
        self.take(name, "a string or a number", |value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Float(number) => Some(number.to_string()),
            Value::Integer(number) => Some(number.to_string()),
            _ => None,
        })
    }

    fn boolean(&mut self, name: &str) -> Option<bool> {
        self.take(name, "true or false", Value::as_bool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str, flags: RawConfig) -> Result<ServeConfig, Problems> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gallery.toml");
        std::fs::write(&path, text).unwrap();
        let mut problems = Vec::new();
        flags.or_file(&path, &mut problems).validate(problems)
    }

    const FOLDERS: &str = "gallery = \"/g\"\nbundle = \"/b\"\n";

    fn flags() -> RawConfig {
        RawConfig { gallery: Some("/g".into()), bundle: Some("/b".into()), ..RawConfig::default() }
    }

    #[test]
    fn defaults_are_enough() {
        let config = flags().validate(Vec::new()).unwrap();
        assert_eq!(config.queries_waiting_max, 256);
        assert_eq!(config.matcher, MatcherConfig::default());
        #[cfg(feature = "embedded-broker")]
        assert_eq!(
            config.broker,
            BrokerConfig::Embedded {
                listen: "127.0.0.1:1883".parse().unwrap(),
                clients_max: 1000,
                security: ListenSecurity::default()
            }
        );
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let text = "galery = \"x\"\nlisten = 5\nexact = \"yes\"\nclients_max = 0\nrerank = -1\nqueries_waiting_max = 1000000\nlatency_budget_ms = 0\ndevice_rate_max = 0\nrecall = 2\nexpand = 101\nunknown = \"never\"\n";
        let Problems(problems) = raw(text, RawConfig::default()).unwrap_err();
        for named in [
            "unknown field `galery`",
            "listen must be a string",
            "exact must be true or false",
            "no gallery",
            "no bundle",
            "clients_max is 0",
            "rerank is -1",
            "queries_waiting_max is 1000000",
            "latency_budget_ms is 0",
            "device_rate_max is 0",
            "recall is 2",
            "expand is 101",
            "unknown is never",
        ] {
            assert!(problems.iter().any(|problem| problem.contains(named)), "{named}: {problems:?}");
        }
        assert_eq!(problems.len(), 13, "{problems:?}");
        let Problems(problems) = raw("a = = 1", flags()).unwrap_err();
        assert!(problems[0].contains("gallery.toml") && problems[0].contains("line 1"), "{problems:?}");
    }

    #[test]
    fn flags_come_before_the_file() {
        let config = raw(
            &format!("{FOLDERS}broker = \"a:1\"\nclient_id = \"me\"\nrerank = 50\n"),
            RawConfig { rerank: Some(7), ..RawConfig::default() },
        )
        .unwrap();
        assert_eq!(
            config.broker,
            BrokerConfig::External {
                host: "a".to_owned(),
                port: 1,
                client_id: "me".to_owned(),
                security: ClientSecurity::default()
            }
        );
        assert_eq!((config.matcher.rerank, config.gallery.to_str()), (Some(7), Some("/g")));
        #[cfg(feature = "embedded-broker")]
        {
            let flag = RawConfig { listen: Some("127.0.0.1:0".to_owned()), ..flags() };
            assert!(matches!(raw("broker = \"a:1\"", flag).unwrap().broker, BrokerConfig::Embedded { .. }));
        }
    }

    #[test]
    fn http_is_an_address_or_none() {
        let http =
            |text: &str| RawConfig { http: Some(text.to_owned()), broker: Some("a:1".to_owned()), ..flags() };
        let default = RawConfig { broker: Some("a:1".to_owned()), ..flags() }.validate(Vec::new()).unwrap();
        assert_eq!(default.http.unwrap().listen, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(http("none").validate(Vec::new()).unwrap().http, None);
        let listen = |text| http(text).validate(Vec::new()).map(|config| config.http.unwrap().listen);
        assert_eq!(listen("localhost:0").unwrap(), "127.0.0.1:0".parse().unwrap());
        assert_eq!(listen("[::]:80").unwrap(), "[::]:80".parse().unwrap());
        for text in ["", "8080", "localhost", "somewhere:80"] {
            assert!(listen(text).unwrap_err().to_string().contains("http is"), "{text}");
        }
    }

    #[test]
    fn what_is_unknown_is_a_word_or_a_similarity() {
        for (text, expected) in [
            ("\"learned\"", UnknownPhotos::Learned),
            ("\"matched\"", UnknownPhotos::Matched),
            ("0.4", UnknownPhotos::Below(0.4)),
            ("0", UnknownPhotos::Below(0.0)),
        ] {
            let config = raw(&format!("{FOLDERS}broker = \"a:1\"\nunknown = {text}\n"), RawConfig::default());
            assert_eq!(config.unwrap().matcher.unknown, expected);
        }
        for text in ["2", "\"\"", "nan"] {
            let config = raw(&format!("{FOLDERS}broker = \"a:1\"\nunknown = {text}\n"), RawConfig::default());
            assert!(config.unwrap_err().to_string().contains("unknown is"));
        }
    }

    #[test]
    fn paths_in_the_file_are_relative_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gallery.toml");
        std::fs::write(&path, "gallery = \"g\"\nbundle = \"b\"\nbroker = \"a:1\"\n").unwrap();
        let config = RawConfig::default().or_file(&path, &mut Vec::new()).validate(Vec::new()).unwrap();
        assert_eq!((config.gallery, config.bundle), (dir.path().join("g"), dir.path().join("b")));
    }

    #[test]
    fn brokers_are_host_and_port() {
        let broker = |broker: &str| {
            RawConfig { broker: Some(broker.to_owned()), ..flags() }
                .validate(Vec::new())
                .map(|config| config.broker)
        };
        for (text, host, port) in [("mqtt://a.lan:1883/", "a.lan", 1883), ("[::1]:2", "::1", 2)] {
            let BrokerConfig::External { host: got, port: at, client_id, .. } = broker(text).unwrap() else {
                panic!("{text}")
            };
            assert_eq!((got.as_str(), at), (host, port));
            assert!(client_id.starts_with("glimpse-gallery-") && client_id.len() == 28);
        }
        for text in ["a.lan", "a.lan:", "a.lan:0", "a.lan:99999", ":1883", "user@a:1"] {
            assert!(broker(text).is_err(), "{text}");
        }
    }

    #[cfg(feature = "embedded-broker")]
    #[test]
    fn an_address_that_others_can_reach_is_refused_with_a_way_out() {
        for listen in ["0.0.0.0:1883", "192.168.0.7:0", "[::]:1883"] {
            let error = RawConfig { listen: Some(listen.to_owned()), ..flags() }
                .validate(Vec::new())
                .unwrap_err()
                .to_string();
            assert!(error.contains("without TLS") && error.contains("--listen-tls"), "{error}");
        }
        assert!(RawConfig { listen: Some("nowhere".to_owned()), ..flags() }.validate(Vec::new()).is_err());
        assert!(RawConfig { listen: Some("localhost:7".to_owned()), ..flags() }.validate(Vec::new()).is_ok());
    }
}
