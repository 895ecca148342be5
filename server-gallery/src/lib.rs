//! The gallery server: photos become features, and queries over MQTT become matches.
//!
//! In reading order:
//!
//! - [`store`]: the durable gallery, one redb file.
//! - [`sources`]: which photos to ingest, from a folder or a CSV file.
//! - [`ingest`]: photos into the store, on all cores, resumable.
//! - [`catalogue`]: what is known of the images of an index, packed.
//! - [`index`]: the gallery in memory; ADC scan over codes, exact ranking.
//! - [`filter`]: which images a query may be answered with.
//! - [`view`]: an index and what has changed since it was made: one generation, to be searched.
//! - [`gallery`]: bundle, store and index put together into a view.
//! - [`live`]: the view of a gallery that others write to.
//! - [`verify`]: whether a gallery's folder holds what was committed.
//! - [`backup`]: copies of a gallery, and a gallery in the place of another.
//! - [`matcher`]: bytes of a query in, bytes of its reply out; no I/O.
//! - [`mqtt`]: the client between a broker and the matcher.
//! - `broker`: the embedded broker, behind the feature `embedded-broker`.
//! - [`password`]: hashes of passwords.
//! - [`access`]: the registry of devices, their credentials, TLS, and the audit log.
//! - `door`: the way in for other machines, before the broker.
//! - [`models`]: roll-outs of query networks to devices.
//! - [`config`]: a TOML file, the environment and flags, checked as a whole.
//! - [`monitor`]: what happens in the server: counters, latency, the last queries, devices, live recall.
//! - [`http`]: health, metrics, and the console.
//! - [`told`]: errors as people read them.
//! - [`serve`]: the server process, to be run by `main` or by a test.
//! - [`commands`]: one file for each command of the binary.
//!
//! Nothing here writes a reply's format but [`matcher`], nothing knows topics but [`mqtt`] and `broker`, and nothing
//! prints but [`commands`].

pub mod access;
pub mod backup;
#[cfg(feature = "embedded-broker")]
pub mod broker;
mod cache;
pub mod catalogue;
pub mod commands;
pub mod config;
#[cfg(feature = "embedded-broker")]
mod door;
pub mod filter;
pub mod gallery;
pub mod http;
pub mod index;
pub mod ingest;
mod limits;
pub mod live;
pub mod matcher;
mod memory;
pub mod models;
pub mod monitor;
pub mod mqtt;
pub mod password;
mod places;
pub mod progress;
pub mod serve;
mod session;
pub mod sources;
pub mod store;
#[cfg(test)]
mod testing;
pub mod told;
pub mod verify;
pub mod view;
