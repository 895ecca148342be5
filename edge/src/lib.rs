//! The Glimpse query client: a photo goes in, the nearest images of a gallery come out.
//!
//! The core needs neither an operating system nor an allocator (`--no-default-features`); `edge/mcu` runs it on a microcontroller. In
//! reading order:
//!
//! - [`client`]: which queries are in flight, when to send one again, when to give one up; pure logic.
//! - [`ports`]: what the core needs from the world: [`Camera`], [`Embedder`], [`Uplink`], [`Clock`].
//! - [`session`]: client, [`outbox`] and uplink at work together.
//! - [`backoff`]: waiting longer after each failure, with jitter.
//! - [`duty`]: how often a device may do something that costs.
//! - [`pins`]: lamps and a debounced button over embedded-hal's pins.
//! - [`trigger`]: when a photo is taken; [`vision`]: whether it is any good, and whether something moves.
//!
//! The feature `linux` (default) adds:
//!
//! - [`linux`]: cameras, the query network in tract, MQTT 5 over rumqttc, CBOR, output.
//! - [`commands`]: what the program `glimpse-edge` can do, one file a command.
//!
//! What is deliberately absent: any way to send a photo. Only embeddings leave the device.
//!
//! ```
//! use core::time::Duration;
//! use glimpse_edge::{Action, Jitter, Patience, QueryClient};
//! use glimpse_protocol::QueryId;
//!
//! let mut client = QueryClient::<&str, 4>::new(Patience::within(Duration::from_secs(5), 3), Jitter::new(1));
//! let id = QueryId::from_bytes([7; 16]);
//! client.submit(id, "an encoded query", Duration::ZERO).expect("there is room for four");
//! assert_eq!(client.poll(Duration::ZERO), None);
//! client.connected();
//! assert_eq!(client.poll(Duration::ZERO), Some(Action::Publish { id, attempt: 1 }));
//! let answered = client.reply(id, Duration::from_millis(3)).expect("the query is in flight");
//! assert_eq!(answered.reply_time, Duration::from_millis(3));
//! ```
#![cfg_attr(not(feature = "linux"), no_std)]

#[cfg(all(test, not(feature = "linux")))]
extern crate std;

pub mod backoff;
pub mod client;
pub mod duty;
pub mod outbox;
pub mod pins;
pub mod ports;
pub mod session;
pub mod trigger;
pub mod vision;

#[cfg(feature = "linux")]
pub mod commands;
#[cfg(feature = "linux")]
pub mod linux;

pub use backoff::{Backoff, Jitter};
pub use client::{Action, Answered, Busy, Counters, GiveUp, Patience, QueryClient, Refused};
pub use duty::Duty;
pub use outbox::Outbox;
pub use pins::{Active, Button, Debounce, Indicator, Lamp, Sign};
pub use ports::{Camera, Capture, Clock, Embedder, Error, ErrorKind, Received, Uplink};
pub use session::{Event, Session};
