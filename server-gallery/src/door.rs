//! The door: what comes from other machines passes here before it reaches the broker.
//!
//! ```text
//! stranger ──TCP──► door: places, TLS 1.3, a whole CONNECT in time ──loopback──► broker: who is it, which topics
//! ```
//!
//! rmqtt can speak TLS itself, but always 1.2 too, with a certificate that stays until it ends, and without telling
//! which certificate a client showed. So TLS ends here, and what is inside goes to a listener of the broker that only
//! this machine reaches. That costs a copy of each packet through loopback, and brings more than TLS: who does not
//! show a whole CONNECT packet within seconds never reaches the broker, and connections are bounded in all and for
//! each address.
//!
//! The broker knows a connection by the address that the door dials from. While a connection is open, the operating
//! system gives its address to nobody else, so no other program of this machine can pass as one of ours: the broker
//! asks [`Peers`] who stands behind an address, and lets nobody in for whom the door does not vouch.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::access::tls::ServerTls;
use crate::access::{Access, Event, Fingerprint};
use crate::places::{Place, Places};

/// How long TLS and the CONNECT packet may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long saying goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest CONNECT packet: names, a password, and a last will, which is a status of some hundred bytes.
const CONNECT_BYTES_MAX: usize = 16 << 10;

/// Connections that have not yet shown a whole CONNECT packet, in all and of one network. A fleet behind one router
/// comes back at once after a power cut, and tries again.
pub(crate) const WAITING_MAX: usize = 512;
const WAITING_OF_NETWORK_MAX: usize = 64;

/// Who stands behind a connection of the door to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Where it comes from.
    pub(crate) address: SocketAddr,
    /// The certificate that it showed, whose key it has.
    pub(crate) certificate: Option<Fingerprint>,
    /// Whether the connection is encrypted.
    pub(crate) tls: bool,
}

/// The open connections of the door, by the address that it dialled from.
#[derive(Debug, Default)]
pub(crate) struct Peers(Mutex<HashMap<SocketAddr, Peer>>);

impl Peers {
    /// Who stands behind an address.
    pub(crate) fn of(&self, dialled_from: SocketAddr) -> Option<Peer> {
        self.lock().get(&dialled_from).copied()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Peer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Vouches for a connection until dropped, which must be before the connection itself is.
struct Vouched<'a> {
    peers: &'a Peers,
    dialled_from: SocketAddr,
}

impl<'a> Vouched<'a> {
    fn new(peers: &'a Peers, dialled_from: SocketAddr, peer: Peer) -> Self {
        peers.lock().insert(dialled_from, peer);
        Self { peers, dialled_from }
    }
}

impl Drop for Vouched<'_> {
    fn drop(&mut self) {
        self.peers.lock().remove(&self.dialled_from);
    }
}

/// What every connection needs.
pub(crate) struct Behind {
    /// Where the broker listens for the door.
    pub(crate) broker: SocketAddr,
    /// Whom the door vouches for.
    pub(crate) peers: Arc<Peers>,
    /// For the audit log.
    pub(crate) access: Arc<Access>,
    /// Places for connections that have shown a CONNECT packet.
    pub(crate) places: Arc<Semaphore>,
    /// Places for those that have not.
    pub(crate) waiting: Arc<Places>,
}

/// Places for connections that have not yet shown a CONNECT packet.
pub(crate) fn waiting_places() -> Arc<Places> {
    Places::new(WAITING_MAX, WAITING_OF_NETWORK_MAX)
}

/// A listener that other machines can reach. Dropping it closes the door; connections that are through stay.
pub(crate) struct Door {
    address: SocketAddr,
    accepting: tokio::task::JoinHandle<()>,
}

impl Door {
    /// Listens on `listen`; with `tls`, for TLS 1.3 only.
    pub(crate) fn open(
        listen: SocketAddr,
        tls: Option<Arc<ServerTls>>,
        behind: Arc<Behind>,
    ) -> io::Result<Self> {
        let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A server that was killed leaves connections in TIME_WAIT, and its successor must not wait for their end.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        let listener = socket.listen(1024)?;
        let address = listener.local_addr()?;
        Ok(Self { address, accepting: tokio::spawn(accept(listener, tls, behind)) })
    }

    /// Where it listens, with the port that it got.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, tls: Option<Arc<ServerTls>>, behind: Arc<Behind>) {
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Of one connection, or for want of file descriptors: that passes.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(waiting) = behind.waiting.take(address.ip()) else {
            refuse(&behind, address, "too many connections that say nothing");
            continue;
        };
        let (tls, behind) = (tls.clone(), behind.clone());
        tokio::spawn(async move {
            if let Err(error) = pass(stream, address, waiting, tls, &behind).await {
                tracing::debug!(%address, %error, "a connection ended");
            }
        });
    }
}

fn refuse(behind: &Behind, address: SocketAddr, reason: &str) {
    tracing::debug!(%address, reason, "turned away at the door");
    behind.access.audit().record(Event::Refused { device: None, address: Some(address), reason });
}

/// One connection from its first byte to its last.
async fn pass(
    stream: TcpStream,
    address: SocketAddr,
    waiting: Place,
    tls: Option<Arc<ServerTls>>,
    behind: &Behind,
) -> io::Result<()> {
    // A reply is one small packet: waiting for more to send costs up to 40 ms.
    stream.set_nodelay(true)?;
    let Some(tls) = tls else {
        let peer = Peer { address, certificate: None, tls: false };
        return forward(stream, peer, waiting, CONNECT_TIMEOUT, behind).await;
    };
    let started = tokio::time::Instant::now();
    let handshake = TlsAcceptor::from(tls.current()).accept(stream);
    let stream = match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            refuse(behind, address, &format!("no TLS: {error}"));
            return Ok(());
        }
        Err(_) => {
            refuse(behind, address, "no TLS in time");
            return Ok(());
        }
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = Peer { address, certificate: shown.map(|der| Fingerprint::of(der)), tls: true };
    let left = CONNECT_TIMEOUT.saturating_sub(started.elapsed());
    forward(stream, peer, waiting, left, behind).await
}

/// Waits for a whole CONNECT packet, then copies both ways until either side ends.
async fn forward<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    peer: Peer,
    waiting: Place,
    in_time: Duration,
    behind: &Behind,
) -> io::Result<()> {
    let mut connect = Vec::with_capacity(512);
    match tokio::time::timeout(in_time, read_connect(&mut stream, &mut connect)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            refuse(behind, peer.address, &error.to_string());
            return Ok(());
        }
        Err(_) => {
            refuse(behind, peer.address, "no CONNECT packet in time");
            return Ok(());
        }
    }
    drop(waiting);
    // Who only connects takes no place from those who speak MQTT.
    let Ok(_place) = behind.places.clone().try_acquire_owned() else {
        refuse(behind, peer.address, "too many connections");
        return Ok(());
    };
    let mut broker = TcpStream::connect(behind.broker).await?;
    broker.set_nodelay(true)?;
    // Before the broker sees a byte.
    let vouched = Vouched::new(&behind.peers, broker.local_addr()?, peer);
    let done = copy(&mut stream, &mut broker, &connect).await;
    // The address may be given to others when the connection is closed, so nobody may be vouched for under it then.
    drop(vouched);
    drop(broker);
    // With TLS this tells the client that nothing was cut off.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, stream.shutdown()).await;
    done
}

async fn copy<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    broker: &mut TcpStream,
    connect: &[u8],
) -> io::Result<()> {
    broker.write_all(connect).await?;
    let (mut from_client, mut to_client) = tokio::io::split(stream);
    let (mut from_broker, mut to_broker) = broker.split();
    let mut down = pin!(tokio::io::copy(&mut from_broker, &mut to_client));
    // The broker's end is the end of both: a client that was sent away must go.
    tokio::select! {
        up = tokio::io::copy(&mut from_client, &mut to_broker) => drop(up?),
        down = &mut down => return down.map(drop),
    }
    // A client that has said all may still be told what is on its way; MQTT has no other use for half a connection.
    to_broker.shutdown().await?;
    tokio::time::timeout(CLOSE_TIMEOUT, down).await.map_or(Ok(()), |down| down.map(drop))
}

/// Reads until `packet` begins with a whole CONNECT packet.
async fn read_connect<S: AsyncRead + Unpin>(stream: &mut S, packet: &mut Vec<u8>) -> io::Result<()> {
    let invalid = |reason: &'static str| io::Error::new(io::ErrorKind::InvalidData, reason);
    loop {
        match connect_bytes(packet).map_err(invalid)? {
            Some(needed) if packet.len() >= needed => return Ok(()),
            _ => {}
        }
        if stream.read_buf(packet).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it left before its CONNECT packet"));
        }
    }
}

/// How many bytes the CONNECT packet has that `start` begins; `None` where that cannot be told yet.
fn connect_bytes(start: &[u8]) -> Result<Option<usize>, &'static str> {
    let Some((first, rest)) = start.split_first() else { return Ok(None) };
    if *first != 0x10 {
        return Err("it does not begin with an MQTT CONNECT packet");
    }
    let mut length = 0;
    for (place, byte) in rest.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            let bytes = 2 + place + length;
            return if bytes <= CONNECT_BYTES_MAX {
                Ok(Some(bytes))
            } else {
                Err("its CONNECT packet is too large")
            };
        }
    }
    if rest.len() >= 4 { Err("its CONNECT packet has no length") } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_connect_packet_of_a_bounded_length_is_waited_for() {
        for (start, expected) in [
            (&b""[..], Ok(None)),
            (b"\x10", Ok(None)),
            (b"\x10\x11", Ok(Some(19))),
            (b"\x10\x11\x00\x04MQTT", Ok(Some(19))),
            (b"\x10\x80", Ok(None)),
            (b"\x10\x80\x01", Ok(Some(131))),
            (b"\x10\xff\x7f", Ok(Some(16386))),
            (b"\x10\x80\x80\x80\x01", Err("too large")),
            (b"\x10\xff\xff\xff\xff", Err("no length")),
            (b"\x10\xff\xff\xff", Ok(None)),
            (b"\x30\x02", Err("does not begin")),
            (b"\x16\x03\x01", Err("does not begin")),
            (b"GET / HTTP/1.1", Err("does not begin")),
        ] {
            let found = connect_bytes(start);
            match expected {
                Err(part) => assert!(found.unwrap_err().contains(part), "{start:?}"),
                Ok(Some(bytes)) if bytes > CONNECT_BYTES_MAX => {
                    assert!(found.unwrap_err().contains("too large"), "{start:?}");
                }
                Ok(bytes) => assert_eq!(found, Ok(bytes), "{start:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_packet_may_come_in_pieces_and_bring_more_along() {
        let (mut client, mut server) = tokio::io::duplex(64);
        let reading = tokio::spawn(async move {
            let mut packet = Vec::new();
            read_connect(&mut server, &mut packet).await.map(|()| packet)
        });
        for byte in b"\x10\x03ab" {
            client.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        client.write_all(b"c\xe0\x00").await.unwrap();
        assert!(reading.await.unwrap().unwrap().starts_with(b"\x10\x03abc"));
        let (mut client, mut server) = tokio::io::duplex(64);
        client.write_all(b"\x10\x03a").await.unwrap();
        drop(client);
        assert!(read_connect(&mut server, &mut Vec::new()).await.is_err());
    }
}
