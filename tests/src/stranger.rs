//! An MQTT 5 client by hand, over TCP or TLS, that does what no well-behaved client does: what a stranger tries.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring, version,
};

/// How long an answer may take on a busy machine.
pub const WAIT: Duration = Duration::from_secs(20);

/// Reason codes of MQTT 5.
pub mod reason {
    /// Success; of a subscription, QoS 0.
    pub const SUCCESS: u8 = 0;
    /// A subscription at QoS 1.
    pub const GRANTED_QOS_1: u8 = 1;
    /// The server has something against the user name or the password.
    pub const BAD_LOGIN: u8 = 0x86;
    /// Not now.
    pub const UNAVAILABLE: u8 = 0x88;
    /// Not allowed.
    pub const NOT_AUTHORIZED: u8 = 0x87;
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// What a client connects with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Login<'a> {
    /// Client id.
    pub device: &'a str,
    /// User name; none is sent where it is empty.
    pub username: &'a str,
    /// Password; none is sent where it is empty.
    pub password: &'a str,
    /// Topic of the last will; none is sent where it is empty.
    pub will: &'a str,
}

impl<'a> Login<'a> {
    /// A device with its password.
    pub const fn of(device: &'a str, password: &'a str) -> Self {
        Self { device, username: device, password, will: "" }
    }

    /// Nothing but a name.
    pub const fn anonymous(device: &'a str) -> Self {
        Self { device, username: "", password: "", will: "" }
    }

    /// The CONNECT packet.
    pub fn packet(&self) -> Vec<u8> {
        let flag = |text: &str, flag: u8| if text.is_empty() { 0 } else { flag };
        let flags = 2 | flag(self.username, 0x80) | flag(self.password, 0x40) | flag(self.will, 0x04);
        // Protocol name and version, flags, a keep-alive of a minute, no properties.
        let mut body = b"\x00\x04MQTT\x05".to_vec();
        body.extend_from_slice(&[flags, 0, 60, 0]);
        put(&mut body, self.device.as_bytes());
        if !self.will.is_empty() {
            body.push(0);
            put(&mut body, self.will.as_bytes());
            put(&mut body, b"gone");
        }
        for text in [self.username, self.password].into_iter().filter(|text| !text.is_empty()) {
            put(&mut body, text.as_bytes());
        }
        packet(0x10, &body)
    }
}

/// A message that a client received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// A client.
pub struct Stranger {
    stream: Box<dyn Stream>,
    received: Vec<Message>,
    next_id: u16,
}

impl Stranger {
    /// Connects over TCP and shows `login`. The inner result is the server's reason code, where it is no success.
    ///
    /// # Errors
    /// Where there is no answer.
    pub fn connect(address: &str, login: &Login<'_>) -> anyhow::Result<Result<Self, u8>> {
        Self::over(Box::new(tcp(address)?), login)
    }

    /// The same over TLS.
    ///
    /// # Errors
    /// Where there is no TLS, or no answer.
    pub fn connect_tls(
        address: &str,
        tls: Arc<ClientConfig>,
        login: &Login<'_>,
    ) -> anyhow::Result<Result<Self, u8>> {
        let connection = ClientConnection::new(tls, ServerName::try_from("localhost")?)?;
        Self::over(Box::new(StreamOwned::new(connection, tcp(address)?)), login)
    }

    fn over(stream: Box<dyn Stream>, login: &Login<'_>) -> anyhow::Result<Result<Self, u8>> {
        let mut client = Self { stream, received: Vec::new(), next_id: 0 };
        client.send(&login.packet())?;
        let (kind, body) = client.read_packet()?.context("closed instead of answered")?;
        ensure!(kind == 0x20 && body.len() >= 2, "no CONNACK: {kind:#x} {body:?}");
        Ok(if body[1] == reason::SUCCESS { Ok(client) } else { Err(body[1]) })
    }

    /// Publishes at QoS 0, which nobody acknowledges.
    ///
    /// # Errors
    /// Where the connection ends.
    pub fn post(&mut self, topic: &str, payload: &[u8], retain: bool) -> anyhow::Result<()> {
        let mut body = Vec::new();
        put(&mut body, topic.as_bytes());
        body.push(0);
        body.extend_from_slice(payload);
        self.send(&packet(0x30 | u8::from(retain), &body))
    }

    /// Subscribes at QoS 1 and returns the reason code.
    ///
    /// # Errors
    /// Where the connection ends.
    pub fn subscribe(&mut self, filter: &str) -> anyhow::Result<u8> {
        let mut body = self.new_id().to_vec();
        body.push(0);
        put(&mut body, filter.as_bytes());
        body.push(1);
        self.send(&packet(0x82, &body))?;
        let body = self.answer(0x90)?;
        body.last().copied().context("a SUBACK without a reason code")
    }

    /// Publishes at QoS 1 and returns the reason code.
    ///
    /// # Errors
    /// Where the connection ends.
    pub fn publish(
        &mut self,
        topic: &str,
        payload: &[u8],
        response_topic: Option<&str>,
    ) -> anyhow::Result<u8> {
        let mut properties = Vec::new();
        if let Some(topic) = response_topic {
            properties.push(0x08);
            put(&mut properties, topic.as_bytes());
        }
        let mut body = Vec::new();
        put(&mut body, topic.as_bytes());
        body.extend_from_slice(&self.new_id());
        body.extend_from_slice(&length(properties.len()));
        body.extend_from_slice(&properties);
        body.extend_from_slice(payload);
        self.send(&packet(0x32, &body))?;
        // Without a reason code it is success.
        Ok(self.answer(0x40)?.get(2).copied().unwrap_or(reason::SUCCESS))
    }

    /// The next message.
    ///
    /// # Errors
    /// Where none comes in time, or the connection ends.
    pub fn message(&mut self) -> anyhow::Result<Message> {
        while self.received.is_empty() {
            let (kind, _) = self.read_packet()?.context("closed instead of answered")?;
            ensure!(kind & 0xf0 == 0x30, "a packet {kind:#x} instead of a message");
        }
        Ok(self.received.remove(0))
    }

    /// Whether a message is there within half a second.
    ///
    /// # Errors
    /// Where the connection ends.
    pub fn has_message_soon(&mut self) -> anyhow::Result<bool> {
        // A ping is answered after what the server had to send before.
        std::thread::sleep(Duration::from_millis(500));
        self.send(&[0xc0, 0])?;
        self.answer(0xd0)?;
        Ok(!self.received.is_empty())
    }

    /// Waits until the server closes the connection, and answers nothing until then.
    ///
    /// # Errors
    /// Where it does not.
    pub fn wait_until_closed(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < WAIT {
            match self.read_packet() {
                Ok(None) => return Ok(()),
                // Only a DISCONNECT or a message may come before the end.
                Ok(Some(_)) => {}
                Err(error) => {
                    let is_end = error.downcast_ref::<std::io::Error>().is_some_and(|error| {
                        matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof)
                    });
                    return if is_end { Ok(()) } else { Err(error) };
                }
            }
        }
        bail!("the connection is still there after {WAIT:?}")
    }

    /// Writes any bytes.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(bytes)?;
        Ok(self.stream.flush()?)
    }

    fn answer(&mut self, wanted: u8) -> anyhow::Result<Vec<u8>> {
        loop {
            let (kind, body) = self.read_packet()?.context("closed instead of answered")?;
            match kind {
                kind if kind == wanted => return Ok(body),
                kind if kind & 0xf0 == 0x30 => {}
                other => bail!("a packet {other:#x} instead of {wanted:#x}: {body:?}"),
            }
        }
    }

    /// One packet; `None` at the end of the connection. Messages are kept and acknowledged.
    fn read_packet(&mut self) -> anyhow::Result<Option<(u8, Vec<u8>)>> {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let kind = byte[0];
        let mut bytes = 0;
        for place in 0..4 {
            self.stream.read_exact(&mut byte)?;
            bytes |= usize::from(byte[0] & 0x7f) << (7 * place);
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; bytes];
        self.stream.read_exact(&mut body)?;
        if kind & 0xf0 == 0x30 {
            self.keep(kind, &body)?;
        }
        Ok(Some((kind, body)))
    }

    fn keep(&mut self, kind: u8, body: &[u8]) -> anyhow::Result<()> {
        let mut rest = body;
        let topic = String::from_utf8(take(&mut rest)?.to_vec())?;
        if kind & 0x06 != 0 {
            let id = rest.get(..2).context("a message without its id")?;
            self.stream.write_all(&packet(0x40, id))?;
            self.stream.flush()?;
            rest = &rest[2..];
        }
        // One byte is length enough for the properties of a reply.
        let properties = usize::from(*rest.first().context("a message without properties")?);
        ensure!(properties < 0x80, "long properties");
        let payload = rest.get(1 + properties..).context("a message that is cut off")?.to_vec();
        self.received.push(Message { topic, payload });
        Ok(())
    }

    fn new_id(&mut self) -> [u8; 2] {
        self.next_id += 1;
        self.next_id.to_be_bytes()
    }
}

impl std::fmt::Debug for Stranger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stranger")
    }
}

/// A connection that says nothing yet.
///
/// # Errors
/// Where nobody listens.
pub fn tcp(address: &str) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.set_write_timeout(Some(WAIT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// TLS 1.3 that trusts `ca`, with a certificate and its key where they are given.
///
/// # Errors
/// Where a file cannot be read.
pub fn tls(ca: &Path, own: Option<(&Path, &Path)>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots);
    Ok(Arc::new(match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder.with_client_auth_cert(
            vec![CertificateDer::from_pem_file(certificate)?],
            PrivateKeyDer::from_pem_file(key)?,
        )?,
    }))
}

/// A packet of MQTT.
pub fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind];
    packet.extend_from_slice(&length(body.len()));
    packet.extend_from_slice(body);
    packet
}

/// A length in groups of seven bits.
fn length(mut bytes: usize) -> Vec<u8> {
    let mut groups = Vec::new();
    loop {
        let group = (bytes & 0x7f) as u8;
        bytes >>= 7;
        groups.push(if bytes > 0 { group | 0x80 } else { group });
        if bytes == 0 {
            return groups;
        }
    }
}

fn put(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    body.extend_from_slice(bytes);
}

fn take<'a>(rest: &mut &'a [u8]) -> anyhow::Result<&'a [u8]> {
    let (length, after) = rest.split_at_checked(2).context("cut off")?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let (taken, after) = after.split_at_checked(length).context("cut off")?;
    *rest = after;
    Ok(taken)
}
