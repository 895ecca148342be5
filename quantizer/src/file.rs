//! The codebook file: safetensors with `centroids` `[M, K, D / M]` and, optionally, `rotation` `[D, D]`, both `F32`.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{borrow::Cow, format};

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView, View, serialize};

use crate::codebook::{CENTROIDS_MAX, DIMENSION_MAX, check_shape};
use crate::{Codebook, CodebookError};

pub(crate) const CENTROIDS: &str = "centroids";
pub(crate) const ROTATION: &str = "rotation";

/// The header of our files has about 200 bytes; 64 KiB leave room for what others put beside.
const HEADER_BYTES_MAX: usize = 64 * 1024;
const FILE_BYTES_MAX: usize = HEADER_BYTES_MAX + 4 * DIMENSION_MAX * (CENTROIDS_MAX + DIMENSION_MAX);

pub(crate) fn read(bytes: &[u8]) -> Result<Codebook, CodebookError> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(CodebookError::TooLarge { bytes: bytes.len(), max: FILE_BYTES_MAX });
    }
    let header_bytes = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
    if header_bytes.is_some_and(|header_bytes| header_bytes > HEADER_BYTES_MAX as u64) {
        return Err(CodebookError::NotSafetensors { reason: "the header is too long".to_string() });
    }
    let file = SafeTensors::deserialize(bytes).map_err(|error| not_safetensors(&error))?;
    let centroids = tensor(&file, CENTROIDS)?.ok_or(CodebookError::Missing { tensor: CENTROIDS })?;
    let &[sub_spaces, centroids_per_sub_space, sub_dimension] = centroids.shape() else {
        return Err(wrong_shape(CENTROIDS, &centroids, "[M, K, D / M]"));
    };
    let dimension = sub_spaces.saturating_mul(sub_dimension);
    check_shape(sub_spaces, centroids_per_sub_space, dimension)?;
    let rotation = tensor(&file, ROTATION)?;
    if let Some(rotation) = rotation.as_ref().filter(|rotation| rotation.shape() != [dimension, dimension]) {
        return Err(wrong_shape(ROTATION, rotation, "[D, D]"));
    }
    Codebook::new(
        sub_spaces,
        centroids_per_sub_space,
        dimension,
        floats(&centroids),
        rotation.as_ref().map(floats),
    )
}

pub(crate) fn write(codebook: &Codebook) -> Result<Vec<u8>, CodebookError> {
    let (m, k) = (codebook.sub_spaces(), codebook.centroids_per_sub_space());
    let d = codebook.dimension();
    let centroids = Floats { shape: [m, k, codebook.sub_dimension()].into(), values: codebook.centroids() };
    let rotation = codebook.rotation().map(|values| Floats { shape: [d, d].into(), values });
    let tensors = [(CENTROIDS, centroids)].into_iter().chain(rotation.map(|rotation| (ROTATION, rotation)));
    serialize(tensors, None).map_err(|error| not_safetensors(&error))
}

/// A tensor of `F32`, or `None` where the file has none of that name.
fn tensor<'a>(file: &SafeTensors<'a>, name: &'static str) -> Result<Option<TensorView<'a>>, CodebookError> {
    match file.tensor(name) {
        Ok(view) if view.dtype() == Dtype::F32 => Ok(Some(view)),
        Ok(view) => Err(CodebookError::Type { tensor: name, found: format!("{:?}", view.dtype()) }),
        Err(_) => Ok(None),
    }
}

fn floats(view: &TensorView<'_>) -> Vec<f32> {
    view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn wrong_shape(tensor: &'static str, view: &TensorView<'_>, expected: &'static str) -> CodebookError {
    CodebookError::Shape { tensor, found: view.shape().to_vec(), expected }
}

fn not_safetensors(error: &SafeTensorError) -> CodebookError {
    let reason: String = error.to_string();
    CodebookError::NotSafetensors { reason }
}

/// Values to be written, little-endian.
struct Floats<'a> {
    shape: Vec<usize>,
    values: &'a [f32],
}

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}
