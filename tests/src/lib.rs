//! End-to-end tests and the demo: the real programs, started as processes, over their real interfaces.
//!
//! In reading order:
//!
//! - [`workspace`]: where things are in the repository.
//! - [`programs`]: the binaries `glimpse-edge` and `glimpse-gallery`, found beside ours or built.
//! - [`server`]: a running `glimpse-gallery serve`.
//! - [`device`]: a running `glimpse-edge run`.
//! - [`queries`]: photos asked from the device and on the server, as JSON lines.
//! - [`fixture`]: a small gallery for tests.
//! - [`authority`]: certificates for tests.
//! - [`stranger`]: an MQTT client by hand, for what no well-behaved client does.
//! - [`foreign`]: an MQTT client and an ONNX engine that are not ours, in Python.
//! - [`board`]: a board that starts from an image, by `glimpse-firmware boot`.
//! - [`browser`]: a headless Chromium, driven by a script in Python.
//! - [`durability`]: kills at random moments, and damaged files.
//! - [`load`]: a thousand simulated devices, for `make bench-server`.
//! - [`soak`]: half an hour of devices, restarts and bad manners, for `make soak`.
//! - [`mosquitto`]: a broker that is not ours.
//! - [`link`]: a network that loses, stalls and breaks.
//! - [`plugs`]: devices that are killed at random moments.
//! - [`emulated`]: `glimpse-edge` for ARM, in an emulator.
//! - [`microcontroller`]: `glimpse-mcu` on an emulated board, with a gateway at its serial line.
//! - [`machine`]: a board with a camera and a button, emulated as a whole.
//! - [`demo`]: what `make demo` runs.
//!
//! This crate links no program of ours: what it knows of them is what a user knows.

pub mod authority;
pub mod board;
pub mod browser;
pub mod demo;
pub mod device;
pub mod durability;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod emulated;
pub mod fixture;
pub mod foreign;
pub mod large;
pub mod link;
pub mod load;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod machine;
#[cfg(target_os = "linux")]
pub mod microcontroller;
pub mod mosquitto;
pub mod plugs;
pub mod programs;
pub mod queries;
pub mod server;
pub mod soak;
pub mod stranger;
pub mod workspace;
