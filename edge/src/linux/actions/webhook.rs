//! An address that each outcome is posted to, as JSON.
//!
//! An attempt has ten seconds, an outcome three attempts, with a growing wait between them. Whoever gets one twice, because
//! the first answer was lost, knows it by its `Idempotency-Key`. Once an outcome was given up, the next ones have one attempt each
//! until one arrives: a host that is away is not asked three times as often.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use glimpse_protocol::device;
use thiserror::Error;
use ureq::http::HeaderValue;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use super::queue::{Queue, Told};
use crate::backoff::{Backoff, Jitter};
use crate::linux::credentials::{self, CredentialsError};
use crate::linux::output::chain;

/// How long an attempt may take, from the host's name to the end of its answer.
const ATTEMPT: Duration = Duration::from_secs(10);

/// How long connecting may take of that.
const CONNECT: Duration = Duration::from_secs(5);

const ATTEMPTS: u32 = 3;

/// Between them.
const WAIT_FIRST: Duration = Duration::from_millis(500);
const WAIT_LONGEST: Duration = Duration::from_secs(5);

/// What is read of an answer, so that the connection can be used again.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Why an outcome was not taken.
#[derive(Debug, Error)]
enum PostError {
    #[error("no answer from {origin}")]
    NoAnswer {
        origin: String,
        #[source]
        source: ureq::Error,
    },
    #[error("{origin} answers {status}{}", advice(*.status))]
    Status { origin: String, status: u16 },
}

fn advice(status: u16) -> &'static str {
    match status {
        300..=399 => ": it has moved; write its new address as webhook",
        401 | 403 => ": check webhook_token_file",
        404 | 405 | 410 => ": check the path of webhook",
        _ => "",
    }
}

impl PostError {
    /// Whether the same may be taken a moment later.
    fn is_for_later(&self) -> bool {
        match self {
            Self::NoAnswer { source, .. } => match source {
                ureq::Error::BadUri(_)
                | ureq::Error::Http(_)
                | ureq::Error::Tls(_)
                | ureq::Error::Rustls(_) => false,
                // What rustls finds wrong with the host comes as this.
                ureq::Error::Io(error) => error.kind() != std::io::ErrorKind::InvalidData,
                _ => true,
            },
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..),
        }
    }
}

/// Posts to one address.
pub(super) struct Poster {
    agent: ureq::Agent,
    url: device::WebhookUrl,
    authorization: Option<HeaderValue>,
}

impl fmt::Debug for Poster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poster").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Poster {
    /// Reads the secret, and the authority of the host, where there are such.
    pub(super) fn new(webhook: &device::Webhook) -> Result<Self, CredentialsError> {
        let authorization = webhook.token_file.as_deref().map(bearer).transpose()?;
        let (host, _) = webhook.url.host_and_port();
        if authorization.is_some() && !webhook.url.is_tls() && !crate::linux::host::is_this_machine(host) {
            tracing::warn!(host, "the webhook's token crosses the network in the clear: use https://");
        }
        let roots = match &webhook.ca {
            Some(ca) => RootCerts::Specific(Arc::new(authorities(ca)?)),
            None => RootCerts::WebPki,
        };
        let tls = TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(roots).build();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .https_only(webhook.url.is_tls())
            .tls_config(tls)
            .proxy(None)
            // Followed, a POST becomes a GET, and a secret goes elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(ATTEMPT))
            .timeout_connect(Some(CONNECT))
            .timeout_resolve(Some(CONNECT))
            .user_agent(concat!("glimpse-edge/", env!("CARGO_PKG_VERSION")))
            .max_idle_connections(1)
            .build();
        Ok(Self { agent: config.new_agent(), url: webhook.url.clone(), authorization })
    }

    /// One attempt.
    fn post(&self, told: &Told) -> Result<(), PostError> {
        let origin = || self.url.origin().to_owned();
        let mut request = self
            .agent
            .post(self.url.as_str())
            .header("content-type", "application/json")
            .header("idempotency-key", &told.key);
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let mut answer = request
            .send(&told.json[..])
            .map_err(|source| PostError::NoAnswer { origin: origin(), source })?;
        let status = answer.status().as_u16();
        // What it says is of no interest.
        let _ = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        if (200..300).contains(&status) {
            Ok(())
        } else {
            Err(PostError::Status { origin: origin(), status })
        }
    }
}

fn bearer(path: &Path) -> Result<HeaderValue, CredentialsError> {
    let token = credentials::secret(path)?;
    let unusable =
        |reason: &str| CredentialsError::Unusable { path: path.to_owned(), reason: reason.to_owned() };
    // What RFC 6750 calls a token, and no more: a header has no other characters, and no line's end.
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(unusable("a token has letters, digits and signs, and no spaces"));
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| unusable("it cannot be sent as a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn authorities(path: &Path) -> Result<Vec<Certificate<'static>>, CredentialsError> {
    let found = credentials::certificates(path)?;
    Ok(found.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect())
}

/// The worker's state.
#[derive(Debug)]
pub(super) struct Webhook {
    poster: Poster,
    backoff: Backoff,
    /// Outcomes that did not arrive since the last one that did.
    missed: u64,
}

impl Webhook {
    pub(super) fn new(poster: Poster, jitter: Jitter) -> Self {
        Self { poster, backoff: Backoff::new(WAIT_FIRST, WAIT_LONGEST, jitter), missed: 0 }
    }

    /// Posts each outcome, until the queue ends.
    pub(super) fn run(&mut self, queue: &Queue) {
        while let Some((told, dropped)) = queue.next() {
            if dropped > 0 {
                tracing::warn!(
                    outcomes = dropped,
                    "webhook: dropped, since the host is slower than the answers come"
                );
            }
            match self.deliver(&told, |wait| queue.rest(wait)) {
                Ok(()) => {
                    let missed = std::mem::take(&mut self.missed);
                    if missed > 0 {
                        tracing::info!(
                            outcomes = missed,
                            "webhook: the host takes outcomes again; these it did not get"
                        );
                    }
                }
                Err(error) => {
                    self.missed = self.missed.saturating_add(1);
                    // Once, and not for each while it is away.
                    if self.missed == 1 {
                        tracing::warn!(query_id = told.key, "webhook: {}", chain(&error));
                    } else {
                        tracing::debug!(query_id = told.key, "webhook: {}", chain(&error));
                    }
                }
            }
        }
        if self.missed > 0 {
            tracing::warn!(outcomes = self.missed, "webhook: the host did not get these");
        }
    }

    /// All attempts for one outcome; `rest` waits, and says whether to go on.
    fn deliver(&mut self, told: &Told, rest: impl Fn(Duration) -> bool) -> Result<(), PostError> {
        let attempts = if self.missed > 0 { 1 } else { ATTEMPTS };
        self.backoff.reset();
        let mut result = self.poster.post(told);
        for _ in 1..attempts {
            match &result {
                Err(error) if error.is_for_later() => {}
                _ => break,
            }
            if !rest(self.backoff.after_failure()) {
                break;
            }
            result = self.poster.post(told);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::io::{BufRead as _, BufReader, Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;

    use rumqttc::tokio_rustls::rustls;

    #[derive(Debug)]
    struct Request {
        head: Vec<String>,
        body: String,
    }

    impl Request {
        fn read(stream: impl Read) -> Self {
            let mut stream = BufReader::new(stream);
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                if line.trim().is_empty() {
                    break;
                }
                head.push(line.trim().to_owned());
            }
            let mut request = Self { head, body: String::new() };
            let mut body = vec![0; request.header("content-length").unwrap().parse().unwrap()];
            stream.read_exact(&mut body).unwrap();
            request.body = String::from_utf8(body).unwrap();
            request
        }

        fn header(&self, name: &str) -> Option<&str> {
            self.head.iter().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then_some(value)
            })
        }
    }

    fn answer(mut stream: impl Write, answer: &str) {
        let head = format!(
            "HTTP/1.1 {answer}\r\nlocation: /elsewhere\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.flush().unwrap();
    }

    /// A server that gives these answers, one a connection; with an empty one it says nothing until the other side leaves.
    fn server(answers: &'static [&'static str]) -> (SocketAddr, Receiver<Request>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (told, requests) = channel();
        thread::spawn(move || {
            for say in answers {
                let (mut stream, _) = listener.accept().unwrap();
                told.send(Request::read(&stream)).unwrap();
                if say.is_empty() {
                    let _ = stream.read(&mut [0]);
                } else {
                    answer(&stream, say);
                }
            }
        });
        (address, requests)
    }

    fn private_file(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn webhook(
        address: &str,
        token_file: Option<PathBuf>,
        ca: Option<PathBuf>,
    ) -> Result<Webhook, CredentialsError> {
        let url = address.parse().unwrap();
        let poster = Poster::new(&device::Webhook { url, token_file, ca })?;
        Ok(Webhook::new(poster, Jitter::new(1)))
    }

    fn told() -> Told {
        Told { key: "abab".to_owned(), json: b"{\"photo\":\"a\"}\n".to_vec() }
    }

    /// What becomes of it, and for how long it rested before each further attempt.
    fn deliver(webhook: &mut Webhook) -> (Result<(), String>, Vec<Duration>) {
        let rests = RefCell::new(Vec::new());
        let result = webhook.deliver(&told(), |wait| {
            rests.borrow_mut().push(wait);
            true
        });
        (result.map_err(|error| chain(&error)), rests.into_inner())
    }

    #[test]
    fn an_outcome_is_posted_with_its_id_and_the_secret() {
        let place = tempfile::tempdir().unwrap();
        let token = private_file(place.path(), "token", "s3cret\n");
        let (address, requests) = server(&["204 No Content"]);
        let mut webhook = webhook(&format!("http://{address}/a?b=c"), Some(token), None).unwrap();
        assert!(!format!("{webhook:?}").contains("s3cret"));
        assert_eq!(deliver(&mut webhook), (Ok(()), vec![]));
        let request = requests.recv().unwrap();
        assert_eq!(request.head[0], "POST /a?b=c HTTP/1.1");
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert_eq!(request.header("idempotency-key"), Some("abab"));
        assert_eq!(request.header("authorization"), Some("Bearer s3cret"));
        assert_eq!(request.body, "{\"photo\":\"a\"}\n");
    }

    #[test]
    fn a_server_that_fails_is_asked_again_with_the_same_id() {
        let (address, requests) = server(&["500 No", "503 No", "200 OK"]);
        let mut webhook = webhook(&format!("http://{address}/"), None, None).unwrap();
        let (result, rests) = deliver(&mut webhook);
        assert_eq!((result, rests.len()), (Ok(()), 2));
        assert!(rests[1] > rests[0], "{rests:?}");
        let keys: Vec<String> =
            requests.iter().map(|request| request.header("idempotency-key").unwrap().to_owned()).collect();
        assert_eq!(keys, ["abab", "abab", "abab"]);
    }

    #[test]
    fn what_would_be_refused_again_is_not_posted_again() {
        for (answer, advice) in [
            (&["401 No"], "answers 401: check webhook_token_file"),
            (&["404 No"], "answers 404: check the path"),
            (&["301 Moved"], "answers 301: it has moved"),
            (&["307 Moved"], "answers 307: it has moved"),
            (&["400 No"], "answers 400"),
        ] {
            let (address, requests) = server(answer);
            let mut webhook = webhook(&format!("http://{address}/secret"), None, None).unwrap();
            let (result, rests) = deliver(&mut webhook);
            let error = result.unwrap_err();
            assert!(error.contains(advice) && rests.is_empty(), "{error}");
            assert!(!error.contains("/secret"), "{error}");
            assert_eq!(requests.iter().count(), 1, "{answer:?}");
        }
    }

    #[test]
    fn after_a_failure_there_is_one_attempt_each_until_one_arrives() {
        let (address, requests) = server(&["500", "500", "500", "500", "200 OK", "500", "200 OK"]);
        let mut webhook = webhook(&format!("http://{address}/"), None, None).unwrap();
        let queue = Queue::default();
        // The first is given up after three attempts, the second after one, the third arrives, the fourth is tried again.
        for number in 0..4 {
            queue.push(Arc::new(Told { key: number.to_string(), ..told() }));
        }
        queue.close();
        webhook.run(&queue);
        let keys: Vec<String> =
            requests.iter().map(|request| request.header("idempotency-key").unwrap().to_owned()).collect();
        assert_eq!(keys, ["0", "0", "0", "1", "2", "3", "3"]);
        assert_eq!(webhook.missed, 0);
    }

    #[test]
    fn a_server_that_hangs_is_left() {
        let (address, _requests) = server(&[""]);
        let mut webhook = webhook(&format!("http://{address}/"), None, None).unwrap();
        webhook.missed = 1;
        let soon = Some(Duration::from_millis(300));
        webhook.poster.agent = ureq::Agent::config_builder().timeout_global(soon).build().new_agent();
        let (result, _) = deliver(&mut webhook);
        let error = result.unwrap_err();
        assert!(error.contains("no answer from http://127.0.0.1") && error.contains("timeout"), "{error}");
    }

    #[test]
    fn nobody_there_is_tried_again_and_told() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut webhook = webhook(&format!("http://{address}/"), None, None).unwrap();
        let (result, rests) = deliver(&mut webhook);
        assert!(result.unwrap_err().contains("refused"));
        assert_eq!(rests.len(), 2);
        assert!(webhook.deliver(&told(), |_| false).is_err(), "an ending program does not wait");
    }

    #[test]
    fn by_tls_the_host_must_be_vouched_for() {
        let place = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let ca = private_file(place.path(), "ca.pem", &made.cert.pem());
        let certificate = made.cert.der().clone();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate], key)
                .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = Arc::new(config);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream: TcpStream = stream.unwrap();
                let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, stream);
                // Strangers leave during the handshake.
                if stream.conn.complete_io(&mut stream.sock).is_ok() {
                    // All of it: closed with something unread, a connection is reset, and the answer may be lost with it.
                    Request::read(&mut stream);
                    answer(&mut stream, "200 OK");
                }
            }
        });
        let url = format!("https://localhost:{port}/");
        assert_eq!(deliver(&mut webhook(&url, None, Some(ca)).unwrap()), (Ok(()), vec![]));
        let (result, rests) = deliver(&mut webhook(&url, None, None).unwrap());
        assert!(result.is_err() && rests.is_empty(), "{result:?}: it would not be trusted a moment later");
    }

    #[test]
    fn a_secret_that_others_can_read_or_that_is_none_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let open = private_file(place.path(), "open", "s3cret");
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = webhook("https://a/", Some(open), None).unwrap_err();
        assert!(matches!(error, CredentialsError::Mode { .. }), "{error}");
        let two = private_file(place.path(), "two", "two words");
        let error = webhook("https://a/", Some(two), None).unwrap_err().to_string();
        assert!(error.contains("no spaces") && !error.contains("words"), "{error}");
        let ca = private_file(place.path(), "ca", "hello");
        let error = webhook("https://a/", None, Some(ca)).unwrap_err().to_string();
        assert!(error.contains("no certificate in PEM form"), "{error}");
    }
}
