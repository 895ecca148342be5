//! What `glimpse-firmware` can do, one file a command.

use clap::{Parser, Subcommand};

pub mod boot;
pub mod check;
pub mod disks;
pub mod flash;
pub mod image;
pub mod init;
pub mod provision;
pub mod schema;

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "glimpse-firmware", version, about = "Configures and flashes Glimpse devices")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Writes a commented device.toml to start from
    Init(Box<init::InitArgs>),
    /// Tells all that is wrong with device files, and what a device would make of them
    Check(check::CheckArgs),
    /// Prints the schema of device.toml for editors (JSON Schema, draft 2020-12)
    Schema(schema::SchemaArgs),
    /// An authority of one's own, which signs devices' certificates
    #[command(subcommand)]
    Ca(provision::CaCommand),
    /// Makes folders for devices, each with credentials that the server knows
    Provision(provision::ProvisionArgs),
    /// Lets the server know devices no more
    Revoke(provision::RevokeArgs),
    /// Lists disks, and which of them a card is
    Disks(disks::DisksArgs),
    /// Writes an image to a card, reads it back, and makes it a device's
    Flash(flash::FlashArgs),
    /// Makes an image for a board's card
    Image(image::ImageArgs),
    /// Starts an image as a board that is emulated
    Boot(boot::BootArgs),
}
