//! Broker, gallery and webhook: first the name, then the connection, then what they say. Each wait is bounded.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use glimpse_protocol::device::Webhook;
use glimpse_protocol::{GalleryStatus, SpaceId};

use super::Finding;
use crate::backoff::Jitter;
use crate::linux::actions;
use crate::linux::mqtt::{Connection, MqttUplink, UplinkError};
use crate::linux::output::chain;
use crate::ports::{Received, Uplink as _};

/// How long a name, a connection and a broker's welcome are waited for.
const NAME: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(3);
const WELCOME: Duration = Duration::from_secs(8);

/// How long the gallery's status is waited for: a broker that has one sends it at once.
const STATUS: Duration = Duration::from_secs(2);

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Why nothing can be reached, and what to do.
struct Unreachable {
    message: String,
    advice: String,
}

/// Finds the host and connects to it.
fn reach(host: &str, port: u16, whose: &str) -> Result<SocketAddr, Unreachable> {
    let mut last = None;
    for address in addresses(host, port)? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(_) => return Ok(address),
            Err(error) => last = Some((address, error)),
        }
    }
    let (address, error) = last.unwrap_or_else(|| {
        (SocketAddr::from(([0, 0, 0, 0], port)), io::Error::from(io::ErrorKind::NotFound))
    });
    Err(unreachable(address, &error, whose))
}

fn unreachable(address: SocketAddr, error: &io::Error, whose: &str) -> Unreachable {
    let (message, advice) = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            (format!("nothing listens at {address}"), format!("start {whose} there, or check the port"))
        }
        io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::AddrNotAvailable => (
            format!("there is no route to {address}: {error}"),
            "bring the network up: `ip addr`, `ip route`, Wi-Fi or cable".to_owned(),
        ),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => (
            format!("{address} does not answer within {} s", CONNECT.as_secs()),
            "check the address, and the firewalls on the way".to_owned(),
        ),
        _ => (format!("no connection to {address}: {error}"), "check the address and the network".to_owned()),
    };
    Unreachable { message, advice }
}

/// The system's resolver has waits of its own, of half a minute and more.
fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, Unreachable> {
    let (told, found) = channel();
    let name = host.to_owned();
    let resolve = move || {
        let found = (name.as_str(), port).to_socket_addrs();
        let _ = told.send(found.map(|found| found.take(ADDRESSES_MAX).collect::<Vec<_>>()));
    };
    let trouble = |message: String| {
        Unreachable {
        message,
        advice: "check its spelling and the name server (`getent hosts NAME`, /etc/resolv.conf), or give an address".to_owned(),
    }
    };
    let started = thread::Builder::new().name("resolver".to_owned()).spawn(resolve);
    started.map_err(|error| trouble(format!("cannot look for {host}: {error}")))?;
    match found.recv_timeout(NAME) {
        Ok(Ok(found)) if !found.is_empty() => Ok(found),
        Ok(Ok(_)) => Err(trouble(format!("there is no host {host}"))),
        Ok(Err(error)) => Err(trouble(format!("there is no host {host}: {error}"))),
        Err(RecvTimeoutError::Timeout) => {
            Err(trouble(format!("no name server says within {} s who {host} is", NAME.as_secs())))
        }
        Err(RecvTimeoutError::Disconnected) => Err(trouble(format!("cannot look for {host}"))),
    }
}

/// The broker, and the gallery behind it. `space` is the device's own, where its network could be loaded.
pub fn server(connection: Connection, space: Option<SpaceId>, jitter: Jitter) -> Vec<Finding> {
    const CHECK: &str = "broker";
    let address = connection.server.clone();
    if let Err(Unreachable { message, advice }) =
        reach(address.host(), address.port(), "`glimpse-gallery serve`")
    {
        return vec![Finding::failure(CHECK, message, advice)];
    }
    let mut uplink = match MqttUplink::start(connection, jitter) {
        Ok(uplink) => uplink,
        Err(error) => return vec![Finding::from_error(CHECK, &error)],
    };
    let start = Instant::now();
    let (mut welcome, mut gallery) = (None, None);
    while gallery.is_none() {
        let left = match welcome {
            None => WELCOME.saturating_sub(start.elapsed()),
            Some(since) => STATUS.saturating_sub(Instant::duration_since(&Instant::now(), since)),
        };
        if left.is_zero() {
            break;
        }
        match uplink.receive(left) {
            Ok(Some(Received::Connected)) => welcome = Some(Instant::now()),
            Ok(Some(Received::Gallery(status))) => gallery = Some(status),
            Ok(Some(Received::Disconnected(error))) | Err(error) => {
                uplink.close(0);
                return vec![Finding::failure(CHECK, chain(&error), advice(&error))];
            }
            Ok(Some(Received::Reply { .. }) | None) => {}
        }
    }
    uplink.close(0);
    let Some(welcome) = welcome else {
        let message = format!(
            "{address} takes connections and does not welcome an MQTT client within {} s",
            WELCOME.as_secs()
        );
        return vec![Finding::failure(
            CHECK,
            message,
            "is it an MQTT broker? check the port, and mqtts:// for TLS",
        )];
    };
    let took = welcome.saturating_duration_since(start).as_millis();
    let tls = if address.is_tls() { ", by TLS" } else { "" };
    vec![
        Finding::ok(CHECK, format!("{address} lets this device in after {took} ms{tls}")),
        self::gallery(gallery.as_ref(), space),
    ]
}

fn advice(error: &UplinkError) -> &'static str {
    match error {
        UplinkError::Rejected { .. } => {
            "the name or the password is not the one that the server knows: `glimpse-gallery devices list` there, and `devices \
             add NAME --generate` for a new password; write it into password_file"
        }
        UplinkError::Untrusted { .. } => {
            "ca must be the authority of the server's certificate, the address a name in it, and the clock right; on the server: \
             `glimpse-gallery check`"
        }
        UplinkError::NotGranted { .. } => {
            "the broker must let a device subscribe to its own topics: see docs/security.md for brokers other than the gallery's"
        }
        UplinkError::TakenOver { .. } => {
            "a device of this name is running, here or elsewhere: stop it while the doctor looks, and give each device its own name"
        }
        UplinkError::Lost { .. } => "is it an MQTT broker? check the port, and mqtts:// for TLS",
        _ => "check the address, the network, and that `glimpse-gallery serve` runs there",
    }
}

fn gallery(status: Option<&GalleryStatus>, space: Option<SpaceId>) -> Finding {
    const CHECK: &str = "gallery";
    match (status, space) {
        (None, _) => Finding::failure(
            CHECK,
            "the broker has never heard of a gallery server",
            "connect `glimpse-gallery serve` to this broker, or name the broker that it is connected to",
        ),
        (Some(status), _) if !status.online => Finding::failure(
            CHECK,
            "the gallery server is offline",
            "start `glimpse-gallery serve`; its log says why it ended",
        ),
        (Some(status), Some(space)) if status.space != space => Finding::failure(
            CHECK,
            format!("it serves the space {}, and the model lives in the space {space}", status.space),
            "take the query network of the server's space bundle",
        ),
        (Some(status), _) if status.size == 0 => Finding::warning(
            CHECK,
            "it is online, and holds no image",
            "`glimpse-gallery ingest` or `add` on the server: until then every photo is unknown",
        ),
        (Some(status), _) => Finding::ok(CHECK, format!("online, with {} images", status.size)),
    }
}

/// The webhook: its secret, and that its host can be reached. Nothing is posted.
pub fn webhook(webhook: &Webhook) -> Finding {
    const CHECK: &str = "webhook";
    if let Err(error) = actions::check_webhook(webhook) {
        return Finding::from_error(CHECK, &error);
    }
    let (host, port) = webhook.url.host_and_port();
    match reach(host, port, "the webhook's server") {
        Ok(_) => Finding::ok(CHECK, format!("{} takes connections", webhook.url.origin())),
        // Answers are had without it.
        Err(Unreachable { message, advice }) => Finding::warning(CHECK, message, advice),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use crate::linux::credentials::Credentials;
    use crate::linux::mqtt::Presence;
    use crate::linux::update::Updating;
    use glimpse_protocol::topics::GALLERY_STATUS;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    const SPACE: SpaceId = SpaceId::from_bytes([1; 16]);

    /// The next MQTT packet; all that a client sends here is short.
    fn packet(stream: &mut TcpStream) -> Option<Vec<u8>> {
        let mut head = [0; 2];
        stream.read_exact(&mut head).ok()?;
        let mut length = usize::from(head[1] & 0x7f);
        if head[1] & 0x80 != 0 {
            let mut more = [0];
            stream.read_exact(&mut more).ok()?;
            length |= usize::from(more[0]) << 7;
        }
        let mut body = vec![head[0]; length + 1];
        stream.read_exact(&mut body[1..]).ok()?;
        Some(body)
    }

    /// A broker that welcomes with this reason, and then has this of a gallery.
    fn broker(reason: u8, status: Option<GalleryStatus>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                while let Some(packet) = packet(&mut stream) {
                    match packet[0] >> 4 {
                        1 => stream.write_all(&[0x20, 3, 0, reason, 0]).unwrap(),
                        8 => {
                            stream.write_all(&[0x90, 5, packet[1], packet[2], 0, 1, 1]).unwrap();
                            if let Some(status) = &status {
                                let mut payload = Vec::new();
                                ciborium::into_writer(status, &mut payload).unwrap();
                                let topic = GALLERY_STATUS.as_bytes();
                                let length = (2 + topic.len() + 1 + payload.len()) as u8;
                                assert!(length < 128);
                                let head = [0x31, length, 0, topic.len() as u8];
                                stream.write_all(&[&head, topic, &[0], &payload].concat()).unwrap();
                            }
                        }
                        _ => {}
                    }
                }
            }
        });
        address
    }

    fn examine(address: &str) -> Vec<Finding> {
        let connection = Connection {
            server: address.parse().unwrap(),
            device: "door-1".parse().unwrap(),
            space: SPACE,
            expiry: Duration::from_secs(1),
            keep_alive_s: 60,
            has_status: false,
            credentials: Credentials::default(),
            presence: Presence::default(),
            updating: Updating::default(),
        };
        server(connection, Some(SPACE), Jitter::new(1))
    }

    fn check(finding: &Finding, status: Status, parts: &[&str]) {
        assert_eq!(finding.status, status, "{finding:?}");
        let text = format!("{}\n{}", finding.message, finding.advice.as_deref().unwrap_or_default());
        parts.iter().for_each(|part| assert!(text.contains(part), "{part}: {text}"));
    }

    fn status(online: bool, space: u8, size: u64) -> GalleryStatus {
        GalleryStatus { online, space: SpaceId::from_bytes([space; 16]), size, generation: 1 }
    }

    #[test]
    fn a_broker_with_a_gallery_of_the_same_space_is_good() {
        let findings = examine(&broker(0, Some(status(true, 1, 7))).to_string());
        check(&findings[0], Status::Ok, &["lets this device in"]);
        check(&findings[1], Status::Ok, &["7 images"]);
        assert_eq!(findings.len(), 2);
    }

    #[test]
    fn a_broker_without_a_gallery_is_told() {
        let findings = examine(&broker(0, None).to_string());
        check(&findings[0], Status::Ok, &[]);
        check(&findings[1], Status::Failure, &["never heard", "glimpse-gallery serve"]);
        check(&gallery(Some(&status(false, 1, 7)), Some(SPACE)), Status::Failure, &["offline"]);
        check(&gallery(Some(&status(true, 2, 7)), Some(SPACE)), Status::Failure, &["space bundle"]);
        check(&gallery(Some(&status(true, 1, 0)), Some(SPACE)), Status::Warning, &["ingest"]);
        check(&gallery(Some(&status(true, 2, 7)), None), Status::Ok, &[]);
    }

    #[test]
    fn refused_credentials_are_told_from_nobody_there_and_no_such_host() {
        for reason in [0x86, 0x87] {
            let findings = examine(&broker(reason, None).to_string());
            check(&findings[0], Status::Failure, &["does not let", "devices add NAME --generate"]);
            assert_eq!(findings.len(), 1);
        }
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        check(&examine(&nobody.to_string())[0], Status::Failure, &["nothing listens", "serve"]);
        check(
            &examine("no-such-host.invalid:1")[0],
            Status::Failure,
            &["no-such-host.invalid", "name server"],
        );
        let address = SocketAddr::from(([10, 0, 0, 1], 1883));
        let text = unreachable(address, &io::ErrorKind::NetworkUnreachable.into(), "it");
        assert!(text.message.contains("no route to 10.0.0.1") && text.advice.contains("ip route"));
        let text = unreachable(address, &io::ErrorKind::TimedOut.into(), "it");
        assert!(text.advice.contains("firewalls"));
    }

    #[test]
    fn what_takes_connections_and_says_nothing_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let findings = examine(&listener.local_addr().unwrap().to_string());
        // rumqttc gives up earlier than we do.
        assert_eq!((findings.len(), findings[0].status), (1, Status::Failure), "{findings:?}");
    }

    #[test]
    fn what_is_no_broker_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
                // Closed at once, what was sent might never arrive.
                let _ = packet(&mut stream);
            }
        });
        check(&examine(&address.to_string())[0], Status::Failure, &[]);
    }

    #[test]
    fn a_webhook_that_is_away_is_a_warning() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = |path: &str| format!("http://{}/{path}", listener.local_addr().unwrap()).parse().unwrap();
        let there = Webhook { url: url("secret"), token_file: None, ca: None };
        check(&webhook(&there), Status::Ok, &["takes connections"]);
        assert!(!webhook(&there).message.contains("secret"));
        let bad = Webhook { token_file: Some("/no/such/token".into()), ..there.clone() };
        check(&webhook(&bad), Status::Failure, &["/no/such/token"]);
        drop(listener);
        check(&webhook(&there), Status::Warning, &["nothing listens"]);
    }
}
