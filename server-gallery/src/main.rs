//! `glimpse-gallery`: arguments and logging; everything else is in the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use glimpse_embedder::onnxruntime;
use glimpse_gallery::commands::Command;
use glimpse_gallery::told::told;
use tracing_subscriber::EnvFilter;

/// The Glimpse gallery server: photos in, matches over MQTT out
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  glimpse-gallery ingest photos/ --gallery gallery --bundle models/demo
  glimpse-gallery serve --gallery gallery --bundle models/demo

GLIMPSE_LOG sets what is logged to standard error, as GLIMPSE_LOG=debug or glimpse_gallery=debug,rmqtt=info."
)]
struct Arguments {
    /// How log lines are written to standard error
    #[arg(long, global = true, env = "GLIMPSE_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Shared library of ONNX Runtime (1.18 or newer), to run the gallery network in instead of tract
    #[arg(long, global = true, env = "GLIMPSE_ONNXRUNTIME", value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line, for programs that collect logs
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The embedded broker reports every lost connection at info and above: its clients' affair, not ours.
    let filter = EnvFilter::try_from_env("GLIMPSE_LOG").unwrap_or_else(|_| {
        EnvFilter::new("info,rmqtt=error,rmqtt_net=error,rmqtt_codec=error,rumqttc=warn,tract=warn")
    });
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would report a closed standard error on standard error, and panic.
        .log_internal_errors(false);
    match arguments.log_format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    let ready = arguments.onnxruntime.map_or(Ok(()), |library| Ok(onnxruntime::load(&library)?));
    match ready.and_then(|()| arguments.command.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not a log line: it is shown whatever GLIMPSE_LOG says.
            #[expect(clippy::print_stderr, reason = "the one message of a command that failed")]
            {
                eprintln!("error: {}", told(&error));
            }
            ExitCode::FAILURE
        }
    }
}
