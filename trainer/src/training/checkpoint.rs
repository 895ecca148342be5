//! A run on disk: network, average and optimizer in one file, whole or not there.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::TrainingError;
use super::arithmetic::LossScale;
use crate::files::{FileError, read, write_whole};
use crate::networks::Parameters;

/// What a checkpoint knows beside tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    /// Steps that are done.
    pub(super) step: u64,
    /// Best validation mAP so far.
    pub(super) best_map: f64,
    /// The step that it is from.
    pub(super) best_step: u64,
    /// Of runs in f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) loss_scale: Option<LossScale>,
    /// All settings of the run.
    pub(super) settings: serde_json::Value,
}

/// Everything that a run needs to go on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Checkpoint {
    pub(super) network: Parameters,
    /// The exponential moving average, where the run keeps one.
    pub(super) average: Option<Parameters>,
    /// The optimizer's state, as Burn writes it; empty in the file of the best network.
    pub(super) optimizer: Vec<u8>,
    pub(super) state: State,
}

/// Before the names of the average's tensors.
const AVERAGE: &str = "average.";

impl Checkpoint {
    pub(super) fn write(&self, path: &Path) -> Result<(), FileError> {
        let mut tensors = self.network.tensors();
        let average = self.average.iter().flat_map(Parameters::tensors);
        tensors.extend(
            average.map(|(name, dtype, shape, bytes)| (format!("{AVERAGE}{name}"), dtype, shape, bytes)),
        );
        if !self.optimizer.is_empty() {
            let bytes = self.optimizer.clone();
            tensors.push(("optimizer".to_owned(), Dtype::U8, vec![bytes.len()], bytes));
        }
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).expect("the bytes have this shape"))
        });
        let state = serde_json::to_string(&self.state).expect("numbers and JSON are always JSON");
        let metadata = HashMap::from([("state".to_owned(), state)]);
        let bytes = safetensors::serialize(views, Some(metadata)).expect("tensors of valid shape serialise");
        write_whole(path, &bytes)
    }

    pub(super) fn read(path: &Path) -> Result<Self, TrainingError> {
        let bytes = read(path)?;
        Self::parse(&bytes).map_err(|reason| TrainingError::NotACheckpoint { path: path.into(), reason })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let state = metadata.metadata().as_ref().and_then(|metadata| metadata.get("state"));
        let state =
            serde_json::from_str(state.ok_or("it has no state")?).map_err(|error| error.to_string())?;
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let parameters =
            |prefix: &str| Parameters::from_tensors(&file, prefix).map_err(|error| error.to_string());
        let (network, average) = (parameters("")?, parameters(AVERAGE)?);
        if network.count() == 0 {
            return Err("it holds no network".to_owned());
        }
        Ok(Self {
            network,
            average: (average.count() > 0).then_some(average),
            optimizer: file.tensor("optimizer").map(|tensor| tensor.data().to_vec()).unwrap_or_default(),
            state,
        })
    }
}

/// The first setting, by path, that two JSON objects do not share.
pub(super) fn first_difference(
    found: &serde_json::Value,
    asked: &serde_json::Value,
) -> Option<(String, String, String)> {
    use serde_json::Value;
    match (found, asked) {
        (Value::Object(a), Value::Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
            let (a, b) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
            let (path, found, asked) = first_difference(a, b)?;
            Some((if path.is_empty() { key.clone() } else { format!("{key}.{path}") }, found, asked))
        }),
        (a, b) if a == b => None,
        (a, b) => Some((String::new(), a.to_string(), b.to_string())),
    }
}
