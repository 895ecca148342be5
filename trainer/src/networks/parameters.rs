//! The parameters of a module as plain numbers by path: what checkpoints hold and averages are made of.

use std::collections::BTreeMap;

use burn::module::{Flag, Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::tensor::{Tensor, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use thiserror::Error;

/// Stored numbers that do not belong to the module at hand.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ParametersError {
    /// Stored, but not in the module.
    #[error("it has a parameter {0}, which this network has not")]
    Surplus(String),
    /// In the module, but not stored.
    #[error("it lacks the parameter {0}")]
    Missing(String),
    /// Of another shape.
    #[error("its parameter {path} has shape {found:?}, and this network wants {wanted:?}")]
    Shape {
        /// Which.
        path: String,
        /// The stored shape.
        found: Vec<usize>,
        /// The module's.
        wanted: Vec<usize>,
    },
    /// Not 32-bit floats.
    #[error("its parameter {0} is not of 32-bit floats")]
    Dtype(String),
}

/// Float parameters and running statistics of a module, by path.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parameters(BTreeMap<String, Parameter>);

#[derive(Debug, Clone, PartialEq)]
struct Parameter {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Prefix of their names in files.
const PREFIX: &str = "network.";

impl Parameters {
    /// Reads a module.
    pub fn of(module: &impl Module) -> Self {
        let mut reader = Reader::default();
        module.visit(&mut reader);
        Self(reader.found)
    }

    /// The module with these numbers. Its parameters get ids by their order, so that an optimizer's state finds them again.
    ///
    /// # Errors
    /// [`ParametersError`] where the two do not have the same paths and shapes.
    pub fn apply<M: Module>(&self, module: M) -> Result<M, ParametersError> {
        let present = Self::of(&module);
        for (path, parameter) in &present.0 {
            let found = self.0.get(path).ok_or_else(|| ParametersError::Missing(path.clone()))?;
            if found.shape != parameter.shape {
                let (found, wanted) = (found.shape.clone(), parameter.shape.clone());
                return Err(ParametersError::Shape { path: path.clone(), found, wanted });
            }
        }
        if let Some(path) = self.0.keys().find(|path| !present.0.contains_key(*path)) {
            return Err(ParametersError::Surplus(path.clone()));
        }
        let mut writer = Writer { path: ModulePath::default(), next_id: 1, values: self };
        Ok(module.map(&mut writer))
    }

    /// Moves towards other numbers of the same module: this times `decay` and the others times 1 - `decay`.
    pub fn average(&mut self, others: &Self, decay: f32) {
        for (path, parameter) in &mut self.0 {
            let Some(other) = others.0.get(path) else { continue };
            for (value, other) in parameter.values.iter_mut().zip(&other.values) {
                *value = decay * *value + (1.0 - decay) * other;
            }
        }
    }

    /// Other numbers of the same paths and shapes, each from its path and its place among all of them.
    pub fn map(&self, number: impl Fn(&str, usize) -> f32) -> Self {
        let mut place = 0;
        let parameters = self.0.iter().map(|(path, parameter)| {
            let values = parameter.values.iter().map(|_| {
                place += 1;
                number(path, place)
            });
            let values = values.collect();
            (path.clone(), Parameter { shape: parameter.shape.clone(), values })
        });
        Self(parameters.collect())
    }

    /// Paths whose numbers are not the same, or are in one of the two only.
    pub fn differing(&self, other: &Self) -> Vec<String> {
        let paths: std::collections::BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        paths.into_iter().filter(|path| self.0.get(*path) != other.0.get(*path)).cloned().collect()
    }

    /// The largest difference of two numbers of the same place.
    pub fn largest_difference(&self, other: &Self) -> f32 {
        let pairs = self.0.iter().filter_map(|(path, parameter)| Some((parameter, other.0.get(path)?)));
        let differences = pairs.flat_map(|(a, b)| a.values.iter().zip(&b.values).map(|(a, b)| (a - b).abs()));
        differences.fold(0.0, f32::max)
    }

    /// How many numbers there are.
    pub fn count(&self) -> usize {
        self.0.values().map(|parameter| parameter.values.len()).sum()
    }

    /// As tensors of a safetensors file.
    pub fn tensors(&self) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = |(path, parameter): (&String, &Parameter)| {
            (format!("{PREFIX}{path}"), Dtype::F32, parameter.shape.clone(), bytes(&parameter.values))
        };
        self.0.iter().map(tensor).collect()
    }

    /// Reads what [`Parameters::tensors`] gave, where `prefix` was put before the names.
    ///
    /// # Errors
    /// [`ParametersError::Dtype`].
    pub fn from_tensors(file: &SafeTensors, prefix: &str) -> Result<Self, ParametersError> {
        let path = |name: &str| name.strip_prefix(prefix)?.strip_prefix(PREFIX).map(str::to_owned);
        let own = file.tensors().into_iter().filter_map(|(name, tensor)| Some((path(&name)?, tensor)));
        let read = |(path, tensor): (String, TensorView)| {
            if tensor.dtype() != Dtype::F32 {
                return Err(ParametersError::Dtype(path));
            }
            let values = tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            Ok((path, Parameter { shape: tensor.shape().to_vec(), values: values.collect() }))
        };
        own.map(read).collect::<Result<_, _>>().map(Self)
    }
}

/// The ids of the parameters and training flags whose path passes.
pub fn group(module: &impl Module, passes: impl Fn(&str) -> bool) -> ParamGroup {
    let mut ids = Ids { path: ModulePath::default(), passes, found: Vec::new() };
    module.visit(&mut ids);
    ParamGroup::from_ids(ids.found)
}

/// Where a walk through a module is: field names and indices, as `burn-store` and our exporter write them, without the
/// variants of enums.
#[derive(Default)]
struct ModulePath(Vec<String>);

impl ModulePath {
    fn enter(&mut self, name: &str, container_type: &str) {
        if !container_type.starts_with("Enum:") {
            self.0.push(name.to_owned());
        }
    }

    fn exit(&mut self, container_type: &str) {
        if !container_type.starts_with("Enum:") {
            self.0.pop();
        }
    }

    fn text(&self) -> String {
        self.0.join(".")
    }
}

#[derive(Default)]
struct Reader {
    path: ModulePath,
    found: BTreeMap<String, Parameter>,
}

impl ModuleVisitor for Reader {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.path.exit(container_type);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let shape = value.dims().to_vec();
        self.found.insert(self.path.text(), Parameter { shape, values: super::values(value) });
    }
}

struct Writer<'a> {
    path: ModulePath,
    next_id: u64,
    values: &'a Parameters,
}

impl ModuleMapper for Writer<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.path.exit(container_type);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let id = ParamId::from(self.next_id);
        self.next_id += 1;
        let (_, tensor, mapper) = param.consume();
        let Some(stored) = self.values.0.get(&self.path.text()) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let data = TensorData::new(stored.values.clone(), stored.shape.clone());
        let fresh = Tensor::from_data(data, &tensor.device());
        let fresh = if tensor.is_require_grad() { fresh.require_grad() } else { fresh };
        Param::from_mapped_value(id, fresh, mapper)
    }
}

struct Ids<F> {
    path: ModulePath,
    passes: F,
    found: Vec<ParamId>,
}

impl<F: Fn(&str) -> bool> Ids<F> {
    fn visit(&mut self, id: ParamId) {
        if (self.passes)(&self.path.text()) {
            self.found.push(id);
        }
    }
}

impl<F: Fn(&str) -> bool> ModuleVisitor for Ids<F> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.path.exit(container_type);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.visit(param.id);
    }

    // The switch between batch and running statistics of a norm.
    fn visit_flag(&mut self, flag: &Param<Flag>) {
        self.visit(flag.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::Architecture;
    use burn::tensor::Device;

    #[test]
    fn a_module_takes_the_numbers_of_another() {
        let device = Device::flex();
        let network = || Architecture::MINIATURE.init(&device);
        let (one, other) = (Parameters::of(&network()), network());
        assert_ne!(Parameters::of(&other), one);
        assert_eq!(Parameters::of(&one.apply(other).unwrap()), one);
    }

    #[test]
    fn numbers_survive_a_file() {
        let parameters = Parameters::of(&Architecture::MINIATURE.init(&Device::flex()));
        let tensors = parameters.tensors();
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        let read = Parameters::from_tensors(&SafeTensors::deserialize(&bytes).unwrap(), "").unwrap();
        assert_eq!(read, parameters);
    }

    #[test]
    fn the_numbers_of_another_network_are_refused_by_name() {
        let device = Device::flex();
        let miniature = || Architecture::MINIATURE.init(&device);
        let projected = |dimension| {
            let network = miniature();
            let head = network.head.project_at_random(dimension, None, &device);
            crate::networks::EmbeddingNetwork { head, ..network }
        };
        let of = |dimension| Parameters::of(&projected(dimension));
        assert_eq!(
            of(4).apply(miniature()).unwrap_err(),
            ParametersError::Surplus("head.linear.bias".to_owned())
        );
        let missing = Parameters::of(&miniature()).apply(projected(4)).unwrap_err();
        assert_eq!(missing, ParametersError::Missing("head.linear.bias".to_owned()));
        let shape = of(4).apply(projected(5)).unwrap_err();
        assert!(
            shape.to_string().contains("head.linear.bias has shape [4], and this network wants [5]"),
            "{shape}"
        );
    }
}
