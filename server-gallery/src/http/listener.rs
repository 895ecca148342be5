//! Connections: so many at a time and of one network, with an end to how long a header may take to come and a response to
//! be taken.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_io_timeout::TimeoutStream;

use crate::places::Places;

/// Connections at a time, in all and of one network but this machine, which may be a proxy; more are closed at once.
pub(crate) const CONNECTIONS_MAX: usize = 256;
const CONNECTIONS_OF_NETWORK_MAX: usize = 32;

/// How long the header of a request may take to come, also on a connection that is kept.
const HEADER_WAIT: Duration = Duration::from_secs(15);

/// How long a peer may take nothing of what we send.
const WRITE_WAIT: Duration = Duration::from_secs(30);

/// Bytes of a request's header.
const HEADER_BYTES_MAX: usize = 16 << 10;

/// Answers connections until it is stopped, and then waits for them to end.
pub(super) async fn run(socket: TcpListener, router: Router, mut stopped: watch::Receiver<bool>) {
    let places = Places::new(CONNECTIONS_MAX, CONNECTIONS_OF_NETWORK_MAX);
    let ending = GracefulShutdown::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accept(&socket) => accepted,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        if let Some(place) = place(&places, peer) {
            answer(stream, super::for_peer(&router, peer), place, &ending);
        } else {
            tracing::debug!(%peer, "too many HTTP connections: closed this one");
        }
    }
    drop(socket);
    ending.shutdown().await;
}

/// A place that is taken until this is dropped; `None` where there is none left.
fn place(places: &Arc<Places>, peer: SocketAddr) -> Option<Box<dyn Send>> {
    if peer.ip().to_canonical().is_loopback() {
        places.take_any().map(|place| Box::new(place) as Box<dyn Send>)
    } else {
        places.take(peer.ip()).map(|place| Box::new(place) as Box<dyn Send>)
    }
}

async fn accept(socket: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match socket.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                // Out of file descriptors, or the peer is gone already: neither is an end.
                tracing::debug!(%error, "no connection was accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn answer(stream: TcpStream, router: Router, place: Box<dyn Send>, ending: &GracefulShutdown) {
    // Events are small and should be seen at once; without it they are late, and no worse.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_WAIT));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_WAIT).max_buf_size(HEADER_BYTES_MAX);
    let io = TokioIo::new(Box::pin(stream));
    let connection = ending.watch(builder.serve_connection(io, TowerToHyperService::new(router)));
    tokio::spawn(async move {
        let _place = place;
        if let Err(error) = pin!(connection).await {
            tracing::trace!(%error, "an HTTP connection ended");
        }
        Ok::<(), Infallible>(())
    });
}
