//! Which loss a run minimises, by name, and the numbers that it has.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
use glimpse_quantizer::Codebook;
use serde::{Deserialize, Serialize};

use super::{Csd, D3still, GlobalCosine, Loss, Raml, Regression, Ssp, Temperatures};

/// A loss that a run can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossName {
    /// See [`Ssp`].
    Ssp,
    /// See [`Regression`].
    Reg,
    /// See [`Csd`].
    Csd,
    /// See [`Raml`].
    Raml,
    /// See [`D3still`].
    D3still,
    /// See [`LossConfig::terms`].
    Ours,
}

impl LossName {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Reg, Self::Csd, Self::Raml, Self::D3still, Self::Ssp, Self::Ours];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ssp => "ssp",
            Self::Reg => "reg",
            Self::Csd => "csd",
            Self::Raml => "raml",
            Self::D3still => "d3still",
            Self::Ours => "ours",
        }
    }
}

impl fmt::Display for LossName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for LossName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|loss| loss.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|loss| loss.name()).collect();
            format!("unknown loss '{text}': the losses are {}", names.join(", "))
        })
    }
}

/// A loss with its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossConfig {
    /// Which.
    pub name: LossName,
    /// Of `ssp`, and of that term of `ours`.
    pub temperatures: Temperatures,
    /// Weights of the terms of `ours`; a term of weight 0 is left out.
    pub ours: OursConfig,
}

/// Weights of the terms of `ours`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OursConfig {
    /// Of SSP.
    pub ssp: f64,
    /// Of SSP on the whole embedding, with photos as anchors.
    pub bank: f64,
    /// How many photos, drawn by the run's seed from the training embeddings.
    pub bank_size: usize,
    /// Temperatures of that term.
    pub bank_temperatures: Temperatures,
    /// Of [`GlobalCosine`].
    pub global: f64,
}

impl Default for OursConfig {
    fn default() -> Self {
        Self { ssp: 0.2, bank: 1.0, bank_size: 2048, bank_temperatures: Temperatures::PUBLISHED, global: 5.0 }
    }
}

impl LossConfig {
    /// The published numbers.
    pub fn new(name: LossName) -> Self {
        Self { name, temperatures: Temperatures::PUBLISHED, ours: OursConfig::default() }
    }

    /// The terms with their weights. `bank` gives that many training embeddings, row-major; it is asked only where a
    /// term needs them.
    pub fn terms(
        &self,
        codebook: &Codebook,
        bank: impl FnOnce(usize) -> Vec<f32>,
        device: &Device,
    ) -> Vec<(f64, Box<dyn Loss>)> {
        let alone = |loss: Box<dyn Loss>| vec![(1.0, loss)];
        let ssp = || Box::new(Ssp::new(codebook, self.temperatures, device)) as Box<dyn Loss>;
        match self.name {
            LossName::Ssp => alone(ssp()),
            LossName::Reg => alone(Box::new(Regression)),
            LossName::Csd => alone(Box::new(Csd::PUBLISHED)),
            LossName::Raml => alone(Box::new(Raml::PUBLISHED)),
            LossName::D3still => alone(Box::new(D3still::PUBLISHED)),
            LossName::Ours => {
                let mut terms: Vec<(f64, Box<dyn Loss>)> = vec![];
                if self.ours.ssp > 0.0 {
                    terms.push((self.ours.ssp, ssp()));
                }
                if self.ours.bank > 0.0 {
                    let (bank, dimension) = (bank(self.ours.bank_size), codebook.dimension());
                    let whole = Ssp::whole(bank, dimension, self.ours.bank_temperatures, device);
                    terms.push((self.ours.bank, Box::new(whole)));
                }
                if self.ours.global > 0.0 {
                    terms.push((self.ours.global, Box::new(GlobalCosine)));
                }
                terms
            }
        }
    }
}
