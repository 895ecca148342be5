//! What a camera's picture is worth, and what changes in it: pure logic over small grey pictures. In reading order:
//!
//! - [`grey`]: small grey pictures.
//! - [`quality`]: how sharp and how bright one is, and what to do about bad ones.
//! - [`settle`]: when a camera's automatic exposure has found its way.
//! - [`motion`]: whether something moves.
//!
//! What is deliberately absent: anything that learns, and anything that knows what is in the picture. That is the
//! query network's part.

pub mod grey;
pub mod motion;
pub mod quality;
pub mod settle;

pub use grey::Grey;
pub use motion::Motion;
pub use quality::{Fault, Quality, Screen, Verdict};
pub use settle::Settle;
