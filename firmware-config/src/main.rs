//! `glimpse-firmware`: arguments; the commands are in the library.

use std::process::ExitCode;

use clap::Parser as _;
use glimpse_firmware::commands::{Cli, Command, boot, check, disks, flash, image, init, provision, schema};
use glimpse_firmware::output::complain;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Init(args) => init::run(*args),
        Command::Check(args) => check::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Ca(command) => provision::ca(&command),
        Command::Provision(args) => provision::provision(&args),
        Command::Revoke(args) => provision::revoke(&args),
        Command::Disks(args) => disks::run(&args),
        Command::Flash(args) => flash::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Boot(args) => boot::run(&args),
    };
    result.unwrap_or_else(|error| {
        complain(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}
