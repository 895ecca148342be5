//! `describe`: parameters and multiply-adds of the networks.

use std::io::Write;

use anyhow::Result;
use clap::Args;

use super::{HeadOptions, parse_size};
use crate::networks::{Architecture, Blueprint, Norms};

/// Print parameters and multiply-adds of one network, part by part, or of all.
#[derive(Debug, Args)]
pub struct Describe {
    /// FAMILY[-xWIDTH][-sSTAGES], for example mobilenet-v2-x0.5 or efficientnet-lite0-s5; all families by default.
    network: Option<Architecture>,
    /// Side of the input, a multiple of 32.
    #[arg(long, default_value_t = 224, value_parser = parse_size)]
    size: u32,
    /// Dimension of the space.
    #[arg(long, default_value_t = 256)]
    dimension: usize,
    #[command(flatten)]
    head: HeadOptions,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
}

impl Describe {
    /// Runs the command.
    ///
    /// # Errors
    /// Where standard output cannot be written.
    pub(super) fn run(&self) -> Result<()> {
        let mut rows = Vec::new();
        match self.network {
            Some(network) => {
                rows = self.blueprint(network).costs(self.size as usize);
                rows.push(("whole network".to_owned(), self.blueprint(network).cost(self.size as usize)));
            }
            None => {
                for network in Architecture::listed() {
                    rows.push((network.to_string(), self.blueprint(network).cost(self.size as usize)));
                }
            }
        }
        let mut out = std::io::stdout().lock();
        if self.json {
            let rows: Vec<_> = rows
                .iter()
                .map(|(name, cost)| {
                    serde_json::json!({
                        "name": name, "parameters": cost.parameters, "multiply_adds": cost.multiply_adds,
                    })
                })
                .collect();
            writeln!(out, "{}", serde_json::to_string(&rows)?)?;
            return Ok(());
        }
        writeln!(out, "{0} x {0} px to {1} dimensions\n", self.size, self.dimension)?;
        writeln!(out, "{:<24} {:>14} {:>20}", "", "parameters", "multiply-adds, M")?;
        for (name, cost) in rows {
            writeln!(out, "{name:<24} {:>14} {:>20.1}", cost.parameters, cost.multiply_adds as f64 / 1e6)?;
        }
        Ok(())
    }

    fn blueprint(&self, network: Architecture) -> Blueprint {
        Blueprint { network, head: self.head.config(), norms: Norms::Folded, dimension: self.dimension }
    }
}
