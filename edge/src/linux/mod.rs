//! The Linux layer: the ports of the core over files, tract and MQTT. In reading order:
//!
//! - [`camera`]: photos of cameras, folders and videos.
//! - [`model`]: the query network, and embeddings as the bytes of a query.
//! - [`journal`]: what waits for its outcome, on the disk; [`waiting`]: when it goes there.
//! - [`mqtt`]: the uplink; the only place that knows topics, CBOR and rumqttc.
//! - [`update`]: new query networks from the server.
//! - [`actions`]: what is done with an answer: a program, a webhook, a lamp; [`gpio`]: lines of GPIO chips.
//! - [`doctor`]: what may keep the device from working.
//! - [`output`]: answers as tables and JSON lines; [`npy`]: embeddings as a NumPy file.
//! - [`host`]: the little that comes from the system: name, randomness, signals.
//! - [`time`]: what time it is, and whether to believe it.

pub mod actions;
pub mod camera;
pub mod credentials;
pub mod doctor;
pub mod gpio;
pub mod host;
pub mod journal;
pub mod model;
pub mod mqtt;
pub mod npy;
pub mod output;
pub mod time;
pub mod update;
pub mod usage;
pub mod waiting;
