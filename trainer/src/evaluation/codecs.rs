//! Queries as the server sees them: embeddings that went through a codec of the wire.

use std::path::Path;

use anyhow::{Context, Result};
use glimpse_protocol::{Codec, Embedding, Query, QueryId, SpaceId, TOP_K_MAX};
use glimpse_quantizer::Codebook;

use crate::matrix::Rows;

/// What arrives.
pub struct Arrived {
    /// Embeddings, `[count, dimension]`.
    pub rows: Vec<f32>,
    /// The largest message of a device, in bytes of MQTT payload.
    pub message_bytes: usize,
}

/// Sends embeddings through a codec, as `glimpse-edge` and `glimpse-gallery` do.
///
/// # Errors
/// Embeddings that cannot be read, are not finite, or do not fit the codebook.
pub fn arrived(queries: &dyn Rows, codec: Codec, codebook: &Codebook, space: SpaceId) -> Result<Arrived> {
    let mut rows = queries.read(0..queries.count())?;
    let mut message_bytes = 0;
    let mut code = vec![0; codebook.sub_spaces()];
    for row in rows.chunks_exact_mut(queries.dimension()) {
        let embedding = if codec == Codec::Pq {
            codebook.encode(row, &mut code)?;
            codebook.decode(&code, row)?;
            Embedding::from_codes(&code)?
        } else {
            let embedding = Embedding::encode(codec, row)?;
            embedding.decode_into(row)?;
            embedding
        };
        // The longest of everything else that a device writes: a time, and as many matches as can be asked for.
        let mut query: Query =
            Query::new(QueryId::from_bytes([0xff; 16]), space, embedding, TOP_K_MAX as u16);
        query.taken_at = Some(u64::MAX);
        let mut message = Vec::new();
        ciborium::into_writer(&query, &mut message).context("cannot write a message")?;
        message_bytes = message_bytes.max(message.len());
    }
    Ok(Arrived { rows, message_bytes })
}

/// The codebook of a bundle.
///
/// # Errors
/// A file that cannot be read, or is none.
pub fn read_codebook(path: &Path) -> Result<Codebook> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Codebook::from_safetensors(&bytes).with_context(|| format!("{} is no codebook", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::InMemory;

    #[test]
    fn each_codec_gives_back_what_its_precision_allows_in_the_bytes_of_the_design() {
        let dimension = 64;
        let values: Vec<f32> =
            (0..3 * dimension).map(|place| ((place * 37 % 101) as f32 - 50.0) / 300.0).collect();
        let queries = InMemory { values: &values, dimension };
        // 32 sub-spaces of two dimensions, with a centroid in each quarter.
        let centroids = [-0.1, -0.1, -0.1, 0.1, 0.1, -0.1, 0.1, 0.1].repeat(32);
        let codebook = Codebook::new(32, 4, dimension, centroids, None).unwrap();
        for (codec, error_max, bytes_max) in
            [(Codec::F32, 0.0, 400), (Codec::F16, 1e-4, 250), (Codec::I8, 1e-3, 180), (Codec::Pq, 0.11, 100)]
        {
            let arrived = arrived(&queries, codec, &codebook, SpaceId::from_bytes([1; 16])).unwrap();
            assert!(arrived.message_bytes <= bytes_max, "{codec}: {} bytes", arrived.message_bytes);
            let error = values.iter().zip(&arrived.rows).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error <= error_max, "{codec}: {error}");
            assert_eq!(arrived.rows.len(), values.len());
        }
    }
}
