//! The device's configuration: one `device.toml` says which camera, model, codec and server a device has.
//!
//! What the file may say is defined once, in [`glimpse_protocol::device`], which `glimpse-edge` reads it with. Here are
//! the commands for the person who writes it:
//!
//! - [`commands::init`]: a commented file to start from.
//! - [`commands::check`]: all that is wrong with a file, before a device starts with it.
//! - [`template`]: the text of a new file.
//! - [`output`]: what reaches a terminal.

pub mod commands;
pub mod output;
pub mod template;
