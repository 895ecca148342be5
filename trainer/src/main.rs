//! `glimpse-trainer`: arguments, logging and Ctrl-C around [`glimpse_trainer::commands`].

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, thread};

use clap::Parser;
use glimpse_trainer::commands::Command;
use glimpse_trainer::dashboard::restore_terminal;
use glimpse_trainer::log;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

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
    log::install(arguments.quiet);
    let stop = Arc::new(AtomicBool::new(false));
    if let Err(error) = stop_on_signals(&stop) {
        tracing::warn!("signals cannot be caught, an interrupt will lose the current epoch: {error}");
    }
    match arguments.command.run(&stop) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The first signal asks for a stop, the second ends the process at once. A thread waits for them, as there may be a terminal
/// to give back.
fn stop_on_signals(stop: &Arc<AtomicBool>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let stop = Arc::clone(stop);
    let wait = move || {
        for _ in signals.forever() {
            if stop.swap(true, Ordering::Relaxed) {
                restore_terminal();
                low_level::exit(1);
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map(drop)
}
