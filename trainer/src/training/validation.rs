//! What an epoch is judged by, and the first projection in closed form.

use burn::tensor::{Device, Tensor};

use super::TrainingError;
use super::data::{Inputs, TrainingSet};
use crate::networks::{EmbeddingNetwork, Frozen, values};
use crate::progress::Progress;
use crate::projection::{Projection, Ridge, to_unit};
use crate::retrieval::{Scores, score};

/// Rows that inference takes at once.
const INFERENCE_BATCH: usize = 64;

/// Query views against gallery photos that the teacher embedded.
pub struct Validation {
    /// The queries.
    pub queries: Inputs,
    /// Teacher embeddings of gallery and distractors, `[n, D]`.
    pub gallery: Vec<f32>,
    /// For each query its answers' positions in the gallery.
    pub answers: Vec<Vec<usize>>,
}

impl Validation {
    /// Scores of a network (one without autodiff).
    ///
    /// # Errors
    /// [`TrainingError::Photo`].
    pub fn scores(&self, network: &EmbeddingNetwork, frozen: Frozen) -> Result<Scores, TrainingError> {
        let embeddings = embed(network, frozen, &self.queries)?;
        Ok(score(&embeddings, &self.gallery, network.head.dimension(), &self.answers))
    }

    /// Scores of a network on both sides; `gallery` are the gallery's photos as it sees them.
    ///
    /// # Errors
    /// [`TrainingError::Photo`].
    pub fn symmetric_scores(
        &self,
        network: &EmbeddingNetwork,
        frozen: Frozen,
        gallery: &Inputs,
    ) -> Result<Scores, TrainingError> {
        let (queries, gallery) = (embed(network, frozen, &self.queries)?, embed(network, frozen, gallery)?);
        Ok(score(&queries, &gallery, network.head.dimension(), &self.answers))
    }
}

/// Embeddings `[n, D]` of all rows.
fn embed(network: &EmbeddingNetwork, frozen: Frozen, inputs: &Inputs) -> Result<Vec<f32>, TrainingError> {
    infer(inputs, &device_of(network), None, |input| network.forward_after(frozen, input))
}

/// Sets the head's projection in closed form: ridge regression from pooled features to teacher embeddings, with whichever
/// of `ridges` does best on the validation queries. Returns the network, the ridge and its scores.
///
/// # Errors
/// [`TrainingError::Projection`], and [`TrainingError::NoData`] where `ridges` is empty.
pub fn initialise(
    network: &EmbeddingNetwork,
    frozen: Frozen,
    rank: Option<usize>,
    set: &TrainingSet,
    validation: &Validation,
    ridges: &[f64],
) -> Result<(EmbeddingNetwork, f64, Scores), TrainingError> {
    let device = device_of(network);
    let pool = |input| network.pool_after(frozen, input);
    let pooled = infer(&set.inputs, &device, Some("pooled features"), pool)?;
    let queries = infer(&validation.queries, &device, None, pool)?;
    let channels = pooled.len() / set.len();
    let dimension = set.dimension();
    let ridge = Ridge::new(&pooled, channels, &set.teacher.to_f32(), dimension)?;
    let mut best: Option<(Projection, f64, Scores)> = None;
    for &weight in ridges {
        let projection = ridge.solve(weight)?;
        let mut embeddings = projection.apply(&queries);
        embeddings.chunks_exact_mut(dimension).for_each(to_unit);
        let scores = score(&embeddings, &validation.gallery, dimension, &validation.answers);
        tracing::info!(
            "ridge {weight:>8}: validation mAP {:.4}, recall@1 {:.4}",
            scores.map,
            scores.recall_at_1
        );
        if best.as_ref().is_none_or(|(_, _, best)| scores.map > best.map) {
            best = Some((projection, weight, scores));
        }
    }
    let (projection, weight, scores) = best.ok_or(TrainingError::NoData("no ridge was given"))?;
    let head = network.head.clone().project(&projection, rank, &device);
    Ok((EmbeddingNetwork { backbone: network.backbone.clone(), head }, weight, scores))
}

fn device_of(network: &EmbeddingNetwork) -> Device {
    use burn::module::Module;
    network.devices().into_iter().next().unwrap_or_default()
}

/// Runs part of a network over all rows, without gradients.
fn infer(
    inputs: &Inputs,
    device: &Device,
    name: Option<&str>,
    forward: impl Fn(Tensor<4>) -> Tensor<2>,
) -> Result<Vec<f32>, TrainingError> {
    let rows: Vec<usize> = (0..inputs.len()).collect();
    let progress = name.map(|name| Progress::new(name, rows.len() as u64));
    let mut outputs = Vec::new();
    for (done, rows) in rows.chunks(INFERENCE_BATCH).enumerate() {
        outputs.extend(values(forward(inputs.tensor(rows, device)?)));
        if let Some(progress) = &progress {
            progress.set((done * INFERENCE_BATCH + rows.len()) as u64);
        }
    }
    if let Some(progress) = progress {
        progress.finish();
    }
    Ok(outputs)
}
