//! Everything that has to be known to build a query network again.

use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::architecture::Architecture;
use super::backbone::EmbeddingNetwork;
use super::head::{Head, HeadConfig};
use super::plan::{Cost, Plan};
use super::weights::{WeightsError, load_pretrained};

/// What becomes of batch norms in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norms {
    /// Folded into their convolutions before training, with the pretrained statistics: right for small sets of photos
    /// and for small batches.
    Folded,
    /// Trained, with the statistics of each batch, and folded for the export: for whole networks and large batches.
    Live,
}

/// A query network without its numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blueprint {
    /// Family, width and stages.
    #[serde(with = "as_text")]
    pub network: Architecture,
    /// What stands between maps and the shared space.
    pub head: HeadConfig,
    /// Batch norms.
    pub norms: Norms,
    /// D.
    pub dimension: usize,
}

impl Blueprint {
    /// The network with random weights, projection included.
    pub fn at_random(&self, device: &Device) -> EmbeddingNetwork {
        self.finish(self.network.init(device), device)
    }

    /// The network with pretrained weights and a random projection (and convolution, where the head wants a fresh one).
    ///
    /// # Errors
    /// [`WeightsError`].
    pub fn pretrained(&self, weights: &Path, device: &Device) -> Result<EmbeddingNetwork, WeightsError> {
        Ok(self.finish(load_pretrained(self.network, weights, device)?, device))
    }

    fn finish(&self, network: EmbeddingNetwork, device: &Device) -> EmbeddingNetwork {
        let EmbeddingNetwork { backbone, head } = match self.norms {
            Norms::Folded => network.fold(),
            Norms::Live => network,
        };
        let head = match self.head.channels {
            Some(channels) => Head::fresh(self.network.plan().map_channels(), channels, device),
            None => head,
        };
        let head = head.with_margin(self.head.margin);
        let head = head.project_at_random(self.dimension, self.head.rank, device);
        EmbeddingNetwork { backbone, head }
    }

    /// Parameters and multiply-adds of each part at `side` x `side` pixels: stem, stages, the head's convolution, and the
    /// projection.
    pub fn costs(&self, side: usize) -> Vec<(String, Cost)> {
        let plan = self.network.plan();
        let stages = plan.stage_costs(side);
        let map_side = stages.last().map_or(side, |(_, side)| *side);
        let conv = self.head.conv(&plan);
        let weights = self.head.projection_weights(conv.channels_out, self.dimension);
        let name = |i: usize| if i == 0 { "stem".to_owned() } else { format!("stage {i}") };
        let mut costs: Vec<_> = stages.iter().enumerate().map(|(i, (cost, _))| (name(i), *cost)).collect();
        costs.push(("head convolution".to_owned(), Plan::conv_cost(&conv, self.head.pooled_side(map_side))));
        let projection = Cost { parameters: weights + self.dimension, multiply_adds: weights as u64 };
        costs.push(("projection".to_owned(), projection));
        costs
    }

    /// The sum of [`Blueprint::costs`].
    pub fn cost(&self, side: usize) -> Cost {
        self.costs(side).into_iter().fold(Cost::default(), |sum, (_, cost)| sum + cost)
    }
}

mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Architecture;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
    pub(super) fn serialize<S: Serializer>(network: &Architecture, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(network)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Architecture, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Module;

    #[test]
    fn a_blueprint_counts_what_its_network_has() {
        for (name, channels, rank) in [
            ("miniature", None, None),
            ("miniature-s4", Some(24), Some(3)),
            ("shufflenet-v2-x0.2-s1", None, Some(2)),
        ] {
            let head = HeadConfig { channels, rank, margin: 1 };
            let blueprint =
                Blueprint { network: name.parse().unwrap(), head, norms: Norms::Folded, dimension: 6 };
            let network = blueprint.at_random(&Device::flex());
            assert_eq!(network.head.dimension(), 6);
            let counted: usize =
                blueprint.costs(64).iter().rev().take(2).map(|(_, cost)| cost.parameters).sum();
            // Folded, a norm is one bias in place of scale and bias.
            let folded = if channels.is_none() && !name.contains("-s") { network.head.channels() } else { 0 };
            assert_eq!(network.head.num_params(), counted - folded, "{name}");
        }
    }
}
