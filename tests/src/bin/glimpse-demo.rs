//! `glimpse-demo`: the programs against each other on real photos. Everything is in `glimpse_tests::demo`.

use std::process::ExitCode;

use clap::Parser as _;
use glimpse_tests::demo::{self, Options};

fn main() -> ExitCode {
    match demo::run(&Options::parse()) {
        Ok(broken) if broken.is_empty() => ExitCode::SUCCESS,
        Ok(broken) => {
            eprintln!("\nthe demo misses {} of its bars:", broken.len());
            broken.iter().for_each(|bar| eprintln!("  {bar}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
