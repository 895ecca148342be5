//! The gallery server: photos become features, and queries over MQTT become matches.
//!
//! In reading order:
//!
//! - [`store`]: the durable gallery, one redb file.
//! - [`sources`]: which photos to ingest, from a folder or a CSV file.
//! - [`ingest`]: photos into the store, on all cores, resumable.
//! - [`index`]: the gallery in memory; ADC scan over codes, exact ranking.
//! - [`gallery`]: bundle and store put together into an index.
//! - [`matcher`]: bytes of a query in, bytes of its reply out; no I/O.
//! - [`mqtt`]: the client between a broker and the matcher.
//! - `broker`: the embedded broker, behind the feature `embedded-broker`.
//! - [`password`]: hashes of passwords.
//! - [`config`]: a TOML file, the environment and flags, checked as a whole.
//! - [`monitor`]: what happens in the server: counters, latency, the last queries, devices, live recall.
//! - [`http`]: health, metrics, and the console.
//! - [`serve`]: the server process, to be run by `main` or by a test.
//! - [`commands`]: one file for each command of the binary.
//!
//! Nothing here writes a reply's format but [`matcher`], nothing knows topics but [`mqtt`] and `broker`, and nothing
//! prints but [`commands`].

#[cfg(feature = "embedded-broker")]
pub mod broker;
mod cache;
pub mod commands;
pub mod config;
pub mod gallery;
pub mod http;
pub mod index;
pub mod ingest;
pub mod matcher;
pub mod monitor;
pub mod mqtt;
pub mod password;
pub mod progress;
pub mod serve;
mod session;
pub mod sources;
pub mod store;
#[cfg(test)]
mod testing;
