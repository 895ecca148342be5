//! The query client on a microcontroller: no operating system, no engine, no network stack, and the same embeddings.
//!
//! The board is Arm's MPS2 with a Cortex-M4F, for an emulator has it. In reading order:
//!
//! - [`picture`]: the camera: a picture that lies in memory ([`MemoryCamera`]).
//! - [`network`]: the query network, a plan that lies in memory ([`PlanEmbedder`]).
//! - [`serial`]: the uplink: messages over a serial line to a gateway ([`SerialUplink`]), which has the MQTT.
//! - `board`, on the board alone: its clock, its serial line, its lamps and where its memory is.
//!
//! What is new is only that. Session, client, outbox, lamps, preprocessing, kernels and messages are those of every other device.
//! What is deliberately absent: a photo decoder, for cameras of microcontrollers give pixels; a sleep deeper than that between two bytes; and MQTT.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

#[cfg(target_os = "none")]
pub mod board;
pub mod network;
pub mod picture;
pub mod serial;

pub use network::{NetworkError, PlanEmbedder};
pub use picture::{MemoryCamera, Picture, PictureError};
pub use serial::{Answer, Line, SerialError, SerialUplink};
