//! `glimpse-trainer`: arguments, logging and Ctrl-C around [`glimpse_trainer::commands`].

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use glimpse_trainer::commands::Command;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use tracing_subscriber::EnvFilter;

/// Trains query networks for a Glimpse space.
#[derive(Parser)]
#[command(name = "glimpse-trainer", version)]
struct Arguments {
    /// Warnings and errors only: no progress, no remarks.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("GLIMPSE_LOG")
        .unwrap_or_else(|_| EnvFilter::new(if arguments.quiet { "warn" } else { "info,tract=warn" }));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second signal ends the process at once; the order of the two registrations makes it the second.
        let registered = flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))
            .and_then(|_| flag::register(signal, Arc::clone(&stop)));
        if let Err(error) = registered {
            tracing::warn!("signals cannot be caught, an interrupt will lose the current epoch: {error}");
        }
    }
    match arguments.command.run(&stop) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
