//! `glimpse-firmware schema`: what editors, and people, are told of the keys of `device.toml`.

use std::process::ExitCode;

use clap::Args;

use crate::output::say;
use crate::schema::{json_schema, markdown};

/// Flags of `glimpse-firmware schema`.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// Prints a table for people instead
    #[arg(long)]
    pub markdown: bool,
}

/// Prints it.
///
/// # Errors
/// Output that cannot be written.
pub fn run(args: &SchemaArgs) -> anyhow::Result<ExitCode> {
    say(&if args.markdown { markdown() } else { format!("{:#}\n", json_schema()) })?;
    Ok(ExitCode::SUCCESS)
}
