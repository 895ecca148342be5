//! `devices`: what there is to train on.

use std::io::Write;

use anyhow::Result;
use clap::Args;

use crate::device::{Adapter, DeviceName};

/// List what networks can train on: which devices are built in, and what this machine has of them.
#[derive(Debug, Args)]
pub struct Devices;

impl Devices {
    /// Runs the command.
    ///
    /// # Errors
    /// Where standard output cannot be written.
    #[expect(clippy::unused_self, reason = "commands are run alike")]
    pub(super) fn run(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{:<8} {:<12} {:<12} adapter, driver", "device", "kind", "mixed")?;
        for device in DeviceName::ALL {
            let adapters = device.adapters();
            if !device.is_built_in() {
                writeln!(out, "{device:<8} {:<12} {:<12} not built in: --features {device}", "-", "-")?;
            } else if adapters.is_empty() {
                writeln!(out, "{device:<8} {:<12} {:<12} no driver: {}", "-", "-", device.driver())?;
            }
            for Adapter { name, driver, kind, half } in adapters {
                let half = if half.is_empty() { "no".to_owned() } else { half.join(", ") };
                writeln!(out, "{device:<8} {kind:<12} {half:<12} {name}, {driver}")?;
            }
        }
        writeln!(out, "\n--device is {} where it is not given", DeviceName::by_default())?;
        Ok(())
    }
}
