//! Networks that lose, stall and break, between a device and its server.
//!
//! [`Link`] is a proxy of TCP connections in this process: it breaks them, refuses them, keeps them open and eats what comes, or
//! loses segments. Segments are lost for real: a filter at its sockets drops them at random before TCP sees them, handshakes and
//! acknowledgements too, and TCP sends them again. That needs no rights and no kernel module.
//!
//! [`Namespace`] is a network of its own with `tc netem`, which needs both: root, iproute2, and a kernel that has netem.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use socket2::{Domain, SockFilter, Socket, Type};

/// Connections at once; a device has one, and some that are on their way out.
const CONNECTIONS: i32 = 16;

/// What becomes of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// They reach the server.
    Whole,
    /// They are ended, and new ones at once.
    Cut,
    /// They are open, and nothing arrives.
    Stalled,
}

/// A proxy in front of a server. It ends with the process.
pub struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    loss_percent: u8,
    state: AtomicU8,
    open: Mutex<Vec<TcpStream>>,
    accepted: AtomicU64,
}

impl Shared {
    fn state(&self) -> State {
        match self.state.load(Ordering::SeqCst) {
            0 => State::Whole,
            1 => State::Cut,
            _ => State::Stalled,
        }
    }
}

impl Link {
    /// A link to a server's `HOST:PORT`, that loses so many of a hundred segments which the link itself receives: those of the
    /// device, and those of the server.
    ///
    /// # Errors
    /// Where it cannot listen, or the kernel takes no filter.
    pub fn to(server: &str, loss_percent: u8) -> anyhow::Result<Self> {
        let server = server.parse().with_context(|| format!("{server} is no address"))?;
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        // What it accepts has its filter.
        lose(&listener, loss_percent)?;
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
        listener.listen(CONNECTIONS)?;
        let address = listener.local_addr()?.as_socket().context("an IPv4 socket has a port")?;
        let shared = Arc::new(Shared {
            server,
            loss_percent,
            state: AtomicU8::new(0),
            open: Mutex::default(),
            accepted: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            while let Ok((device, _)) = listener.accept() {
                accepting.accepted.fetch_add(1, Ordering::SeqCst);
                let shared = Arc::clone(&accepting);
                // A connection that cannot be made is one that breaks.
                std::thread::spawn(move || shared.carry(device.into()));
            }
        });
        Ok(Self { address, shared })
    }

    /// `HOST:PORT` of the link.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Connections that devices have made, or tried to make.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Ends all connections, and new ones, until it is mended.
    pub fn cut(&self) {
        self.set(State::Cut);
    }

    /// Lets all connections stand, with nothing arriving, until it is mended: they stay dead, and new ones live.
    pub fn stall(&self) {
        self.set(State::Stalled);
    }

    /// New connections reach the server.
    pub fn mend(&self) {
        self.set(State::Whole);
    }

    /// Cuts and mends it by turns, each for `time`, until the returned guard is dropped; it is left mended.
    #[must_use = "it flaps for as long as this is there"]
    pub fn flap(&self, time: Duration) -> Flapping<'_> {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::spawn(move || {
            for state in [State::Cut, State::Whole].into_iter().cycle() {
                shared.set(state);
                if stopped.recv_timeout(time) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Flapping { link: self, stop: Some(stop), thread: Some(thread) }
    }

    fn set(&self, state: State) {
        self.shared.set(state);
    }
}

impl Shared {
    fn set(&self, state: State) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.store(state as u8, Ordering::SeqCst);
        if state == State::Cut {
            // One that has ended already is as it should be.
            open.drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        }
    }

    /// Carries bytes both ways until one end has enough.
    fn carry(self: Arc<Self>, device: TcpStream) -> anyhow::Result<()> {
        let server = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        lose(&server, self.loss_percent)?;
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if self.state() == State::Cut {
                return Ok(());
            }
            open.push(device.try_clone()?);
        }
        server.connect(&self.server.into())?;
        let server = TcpStream::from(server);
        for stream in [&device, &server] {
            stream.set_nodelay(true)?;
        }
        let (back, forth) = ((server.try_clone()?, device.try_clone()?), (device, server));
        let shared = Arc::clone(&self);
        std::thread::spawn(move || shared.copy(back.0, back.1));
        self.copy(forth.0, forth.1);
        Ok(())
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut bytes = [0; 4096];
        let mut is_dead = false;
        while let Ok(count) = from.read(&mut bytes) {
            // What was eaten once would leave a hole in the stream: such a connection stays dead.
            is_dead |= self.state() == State::Stalled;
            if count == 0 || (!is_dead && to.write_all(&bytes[..count]).is_err()) {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}

/// A link that flaps.
pub struct Flapping<'a> {
    link: &'a Link,
    stop: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Flapping<'_> {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.link.mend();
    }
}

/// Drops so many of a hundred segments that this socket receives.
fn lose(socket: &Socket, percent: u8) -> std::io::Result<()> {
    if percent == 0 {
        return Ok(());
    }
    let below = (u64::from(percent) * (1 << 32) / 100) as u32;
    // Classic BPF: A = a random number; keep the segment where A >= below, else take none of it.
    let (load, jump_if_not_below, take) = (0x20, 0x35, 0x06);
    let random = 0xffff_f000 + 56;
    socket.attach_filter(&[
        SockFilter::new(load, 0, 0, random),
        SockFilter::new(jump_if_not_below, 1, 0, below),
        SockFilter::new(take, 0, 0, 0),
        SockFilter::new(take, 0, 0, u32::MAX),
    ])
}

/// A network of its own, in which the loopback loses packets. It goes when it is dropped.
pub struct Namespace(String);

impl Namespace {
    /// One that loses so many of a hundred packets.
    ///
    /// # Errors
    /// Why there is none here: no root, no iproute2, or no netem in the kernel.
    pub fn lossy(percent: u8) -> anyhow::Result<Self> {
        let name = format!("glimpse-{}", std::process::id());
        run("ip", &["netns", "add", &name])?;
        let namespace = Self(name);
        let name = namespace.0.as_str();
        run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        let loss = format!("{percent}%");
        run("tc", &["-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "loss", &loss])?;
        Ok(namespace)
    }

    /// The same command, inside.
    pub fn command(&self, inner: Command) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).arg(inner.get_program()).args(inner.get_args());
        if let Some(folder) = inner.get_current_dir() {
            command.current_dir(folder);
        }
        for (key, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Whoever made it may remove it; what is left is gone with the next start of the machine.
        let _ = run("ip", &["netns", "delete", &self.0]);
    }
}

fn run(program: &str, words: &[&str]) -> anyhow::Result<()> {
    let output =
        Command::new(program).args(words).output().with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", words.join(" "), said.trim());
    Ok(())
}
