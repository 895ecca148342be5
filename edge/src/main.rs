//! `glimpse-edge`: arguments and logging; the commands are in the library.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use clap::Parser as _;
use glimpse_edge::commands::{Cli, Command, Misconfigured, bench, capture, doctor, embed, plan, query, run};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,glimpse_edge=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // It would report a closed standard error on standard error, and panic.
        .log_internal_errors(false)
        .with_target(false)
        .init();
    let result = match cli.command {
        Command::Query(args) => query::run(args),
        Command::Embed(args) => embed::run(&args),
        Command::Run(args) => run::run(args),
        Command::Capture(args) => capture::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Doctor(args) => doctor::run(args),
        Command::Plan(args) => plan::run(&args),
    };
    match result {
        Ok(status) => status,
        Err(error) if reader_is_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            if error.is::<Misconfigured>() {
                ExitCode::from(Misconfigured::EXIT_STATUS)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Whoever read our output has had enough, such as `head`.
fn reader_is_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}
