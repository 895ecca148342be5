//! Names of values: module paths for parameters, `const_N` for other constants, `conv_3` and the
//! like for results.

use std::collections::{HashMap, HashSet};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bool, Int, Tensor};
use burn_capture::{CaptureBackend, TensorId};

/// The parameters and buffers of a module that lives on a capture device, by tensor id.
///
/// Paths are those of `burn-store`: field names and indices joined by dots, `head.linear.weight`.
pub(crate) fn parameter_paths<M: Module>(module: &M) -> HashMap<TensorId, String> {
    let mut visitor = PathVisitor::default();
    module.visit(&mut visitor);
    visitor.paths
}

#[derive(Default)]
struct PathVisitor {
    stack: Vec<String>,
    paths: HashMap<TensorId, String>,
}

impl PathVisitor {
    fn record(&mut self, id: TensorId) {
        let path = self.stack.join(".");
        self.paths.entry(id).or_insert(path);
    }
}

impl ModuleVisitor for PathVisitor {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        if !is_enum(container_type) {
            self.stack.push(name.to_owned());
        }
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        if !is_enum(container_type) {
            self.stack.pop();
        }
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Ok(tensor) = param.val().try_into_primitive::<CaptureBackend>() {
            self.record(tensor.id());
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        if let Ok(tensor) = param.val().try_into_primitive::<CaptureBackend>() {
            self.record(tensor.id());
        }
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        if let Ok(tensor) = param.val().try_into_primitive::<CaptureBackend>() {
            self.record(tensor.id());
        }
    }
}

/// Variants of an enum are no part of a path: which one it is says the enum's field.
fn is_enum(container_type: &str) -> bool {
    container_type.starts_with("Enum:")
}

/// Hands out names that were never handed out before.
#[derive(Debug, Default)]
pub(crate) struct NameTable {
    taken: HashSet<String>,
    counters: HashMap<String, usize>,
}

impl NameTable {
    /// Marks a name as taken; it may be so already.
    pub(crate) fn reserve(&mut self, name: &str) {
        self.taken.insert(name.to_owned());
    }

    /// `wanted` itself if it is free, else `wanted_1`, `wanted_2` and so on.
    pub(crate) fn unique(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut suffix = 0;
        while !self.taken.insert(name.clone()) {
            suffix += 1;
            name = format!("{wanted}_{suffix}");
        }
        name
    }

    /// `prefix_0`, `prefix_1` and so on.
    pub(crate) fn numbered(&mut self, prefix: &str) -> String {
        let counter = self.counters.entry(prefix.to_owned()).or_default();
        loop {
            let name = format!("{prefix}_{counter}");
            *counter += 1;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::NameTable;

    #[test]
    fn hands_out_each_name_once() {
        let mut names = NameTable::default();
        assert_eq!(names.unique("conv_0"), "conv_0");
        assert_eq!(names.unique("conv_0"), "conv_0_1");
        assert_eq!(names.numbered("conv"), "conv_1");
        assert_eq!(names.numbered("conv"), "conv_2");
    }
}
