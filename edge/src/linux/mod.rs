//! The Linux layer: the ports of the core over files, tract and MQTT. In reading order:
//!
//! - [`camera`]: the photos of a folder.
//! - [`model`]: the query network, and embeddings as the bytes of a query.
//! - [`journal`]: what waits for its outcome, on the disk; [`waiting`]: when it goes there.
//! - [`mqtt`]: the uplink; the only place that knows topics, CBOR and rumqttc.
//! - [`update`]: new query networks from the server.
//! - [`output`]: answers as tables and JSON lines; [`npy`]: embeddings as a NumPy file.
//! - [`host`]: the little that comes from the system: name, randomness, signals.
//! - [`time`]: what time it is, and whether to believe it.

pub mod camera;
pub mod credentials;
pub mod host;
pub mod journal;
pub mod model;
pub mod mqtt;
pub mod npy;
pub mod output;
pub mod time;
pub mod update;
pub mod waiting;
