//! Who may connect: the registry of devices, the checking of their credentials, and the audit log.
//!
//! Everything lies in one folder, `access` beside the gallery unless the configuration names another:
//!
//! ```text
//! devices.toml    the registry: names, hashes of passwords, fingerprints of certificates; for its owner's eyes only
//! devices.lock    held by whoever changes the registry
//! audit.jsonl     what happened, a JSON object a line; audit.1.jsonl and so on are older
//! ```
//!
//! In reading order:
//!
//! - [`registry`]: what is known of each device, and whether a credential is good now; no I/O.
//! - [`file`]: the registry on disk, changed as a whole and under a lock.
//! - [`live`]: the registry that a running server goes by, read anew when the file changes.
//! - [`login`]: a client's password or certificate against the registry, with a limit on guessing.
//! - [`throttle`]: how long somebody who guessed wrong has to wait.
//! - [`audit`]: the log.
//! - [`tls`]: TLS 1.3 for the listener and for our own client.
//!
//! **When is a server open?** As long as there is no `devices.toml`, a server serves this machine and asks nobody who
//! they are. From the first `glimpse-gallery devices add` on every client must prove itself, also after the last
//! device was removed again: a registry that lists nobody lets nobody in. A registry that cannot be read, or that
//! others can write, stops the start; one that is damaged while the server runs changes nothing, and says so.
//!
//! Nothing here knows MQTT; `broker` and `door` do.

pub mod audit;
pub mod file;
pub mod live;
pub mod login;
pub mod registry;
pub mod throttle;
pub mod tls;

pub use audit::{Audit, Event};
pub use live::Access;
pub use registry::{Credential, Device, Fingerprint, Refusal, Registry};
