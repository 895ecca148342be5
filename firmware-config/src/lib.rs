//! The device's configuration: one `device.toml` says which camera, model, codec and server a device has.
//!
//! What the file may say is defined once, in [`glimpse_protocol::device`], which `glimpse-edge` reads it with. Here are
//! the commands for the person who writes it:
//!
//! - [`commands::init`]: a commented file to start from.
//! - [`commands::check`]: all that is wrong with a file, before a device starts with it.
//! - [`commands::schema`]: what editors, and people, are told of its keys.
//! - [`commands::provision`]: credentials for each device, and a folder with all that goes onto it.
//! - [`commands::disks`], [`commands::flash`]: a card with an image and a device's folder.
//! - [`commands::image`]: an image for a board's card.
//! - [`commands::boot`]: an image as a board that is emulated.
//! - [`boards`]: what is known of each board.
//! - [`template`]: the text of a new file.
//! - [`schema`]: the schema, made of the same table of keys as everything else.
//! - [`prompt`]: questions on a terminal.
//! - [`report`]: a problem, drawn into the line that it is about.
//! - [`authority`]: keys and certificates.
//! - [`disks`]: which disks there are, and which are not to be written to.
//! - [`packed`], [`card`], [`partition`]: what is written, where, and what is put into it.
//! - [`builder`]: the scripts that an image is made with.
//! - [`update`]: program updates in one file, and their signature.
//! - [`files`]: files that only their owner can read.
//! - [`output`]: what reaches a terminal.

pub mod authority;
pub mod boards;
pub mod builder;
pub mod card;
pub mod commands;
pub mod disks;
pub mod files;
pub mod output;
pub mod packed;
pub mod partition;
pub mod prompt;
pub mod report;
pub mod schema;
pub mod template;
pub mod update;
