//! What the core needs from the world: a camera, an embedder, an uplink and a clock.
//!
//! The traits are ours and small, so that a test, a microcontroller and Linux implement them alike. Errors follow
//! embedded-hal's manner: an implementation keeps its own error type, and [`Error::kind`] tells generic code the
//! little that it acts upon.

use core::fmt::Debug;
use core::time::Duration;

use glimpse_protocol::{GalleryStatus, QueryId, SpaceId};

/// What generic code does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// This photo or message is bad: go on with the next one.
    Input,
    /// It cannot be done now: try the same again later.
    Unavailable,
    /// It will not work until somebody changes something.
    Configuration,
    /// Anything else.
    Other,
}

/// An error of a camera, an embedder or an uplink.
pub trait Error: Debug {
    /// What generic code does about it.
    fn kind(&self) -> ErrorKind;
}

impl Error for core::convert::Infallible {
    fn kind(&self) -> ErrorKind {
        match *self {}
    }
}

/// What a camera has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capture<P> {
    /// A photo.
    Photo(P),
    /// None now; ask again later.
    NotYet,
    /// There will be no further one.
    End,
}

/// A source of photos.
pub trait Camera {
    /// A photo with whatever the device knows of it.
    type Photo;
    /// Why there is no photo.
    type Error: Error;

    /// The next photo. Does not wait for one: [`Capture::NotYet`] says that the trigger has not come. Each photo is
    /// handed out once; after an error the next call goes on with the next photo ([`ErrorKind::Input`]) or tries
    /// the same again.
    ///
    /// # Errors
    /// Whatever keeps this photo, or every photo, from being read.
    fn capture(&mut self) -> Result<Capture<Self::Photo>, Self::Error>;
}

/// The query network.
pub trait Embedder {
    /// What it embeds.
    type Photo: ?Sized;
    /// Why a photo has no embedding.
    type Error: Error;

    /// The space of its embeddings.
    fn space(&self) -> SpaceId;

    /// Their dimension.
    fn dimension(&self) -> usize;

    /// Writes the photo's embedding, `[dimension]`, of unit norm. On error `embedding` is unspecified.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for a photo that cannot be embedded, and for an `embedding` of another length.
    fn embed(&mut self, photo: &Self::Photo, embedding: &mut [f32]) -> Result<(), Self::Error>;
}

/// What comes from the server.
#[derive(Debug, Clone, PartialEq)]
pub enum Received<R, E> {
    /// The reply topic is subscribed to: queries can be sent.
    Connected,
    /// The connection is gone, or could not be made, for this reason. The uplink goes on trying by itself.
    Disconnected(E),
    /// A reply, whatever it says.
    Reply {
        /// The query that it answers, by its own word: it may be foreign or a repeat.
        id: QueryId,
        /// What it says.
        reply: R,
        /// Whether the server asks to try again later.
        busy: bool,
    },
    /// What the server says of its gallery.
    Gallery(GalleryStatus),
}

/// The way to the server. Sends and receives bytes and knows nothing of attempts or timeouts.
pub trait Uplink {
    /// A decoded reply.
    type Reply;
    /// Why something could not be sent, or why there is no connection.
    type Error: Error;

    /// Hands a query over for sending, without waiting. An error costs the query one attempt.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] while too much is waiting to be sent.
    fn publish(&mut self, id: QueryId, message: &[u8]) -> Result<(), Self::Error>;

    /// Tells the world that the device is there, and how many queries wait in its outbox.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    fn announce(&mut self, outbox: usize) -> Result<(), Self::Error>;

    /// What came, waiting at most `wait` for it; may return `None` earlier.
    ///
    /// # Errors
    /// An uplink that has ended for good; a lost connection is [`Received::Disconnected`].
    fn receive(&mut self, wait: Duration) -> Result<Option<Received<Self::Reply, Self::Error>>, Self::Error>;
}

/// Monotonic time.
pub trait Clock {
    /// Time since any fixed moment; never goes back.
    fn now(&self) -> Duration;
}
