//! An ONNX network in tract.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use rayon::ThreadPoolBuilder;
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::multithread;

use crate::metadata::{ModelError, ModelFile};
use crate::{EmbedderOptions, Profile, fold, operators, profile};

/// An image network, optimised for one input size: `[1, 3, height, width]` in, any shape out.
///
/// Threads share one network by reference; each run has its own state.
pub struct Network {
    engine: Engine,
    input_shape: [usize; 4],
    output_shape: Vec<usize>,
    /// What our own operators use, or that there are none.
    instructions: &'static str,
    threads: usize,
}

enum Engine {
    Tract(Arc<TypedRunnableModel>),
    #[cfg(feature = "onnxruntime")]
    OnnxRuntime(crate::onnxruntime::Sessions),
}

impl Network {
    /// Reads and optimises a network for inputs of `width` x `height` pixels.
    ///
    /// # Errors
    /// [`ModelError`] with the path; also where the network has more than one input or output, or does not take
    /// `[N, 3, height, width]`.
    pub fn load(path: &Path, width: u32, height: u32) -> Result<Self, ModelError> {
        Self::load_with(path, width, height, &EmbedderOptions::default())
    }

    /// The same, run as the options say.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(
        path: &Path,
        width: u32,
        height: u32,
        options: &EmbedderOptions,
    ) -> Result<Self, ModelError> {
        Self::build(ModelFile::read(path)?, width, height, options)
    }

    pub(crate) fn build(
        ModelFile { path, mut proto }: ModelFile,
        width: u32,
        height: u32,
        options: &EmbedderOptions,
    ) -> Result<Self, ModelError> {
        let input_shape = [1, 3, height as usize, width as usize];
        let unusable = |reason: String| ModelError::Unusable { path, reason };
        if let Some(graph) = &mut proto.graph {
            fold::dequantize_weights(graph);
        }
        // tract has assertions that a foreign model can reach: to us they are one more reason why it cannot be run.
        let (plan, output_shape) = catch_unwind(AssertUnwindSafe(|| optimise(&proto, input_shape, options)))
            .unwrap_or_else(|_| Err(TractError::msg("the engine gave up on its graph")))
            .map_err(|error| unusable(format!("{error:#}")))?;
        let instructions = if operators::are_in(plan.model()) { options.isa.name() } else { "none" };
        let threads = options.threads.count();
        Ok(Self { engine: Engine::Tract(plan), input_shape, output_shape, instructions, threads })
    }

    /// As [`load`](Self::load), in ONNX Runtime, which must have been [loaded](crate::onnxruntime::load). Dimensions of the output
    /// are found out by running it once.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    #[cfg(feature = "onnxruntime")]
    pub fn load_in_onnxruntime(path: &Path, width: u32, height: u32) -> Result<Self, ModelError> {
        let input_shape = [1, 3, height as usize, width as usize];
        let bytes = std::fs::read(path);
        let bytes = bytes.map_err(|source| ModelError::Read { path: path.to_owned(), source })?;
        let unusable = |reason| ModelError::Unusable { path: path.to_owned(), reason };
        let sessions = crate::onnxruntime::Sessions::new(bytes).map_err(unusable)?;
        let nothing = vec![0.0; input_shape.iter().product()];
        let (output_shape, _) = sessions.run(input_shape, &nothing).map_err(unusable)?;
        let engine = Engine::OnnxRuntime(sessions);
        Ok(Self { engine, input_shape, output_shape, instructions: "none", threads: 1 })
    }

    /// Shape of the input: `[1, 3, height, width]`.
    pub const fn input_shape(&self) -> [usize; 4] {
        self.input_shape
    }

    /// The instructions of our own operators, or `none`.
    pub const fn instructions(&self) -> &'static str {
        self.instructions
    }

    /// Threads that run it together.
    pub const fn threads(&self) -> usize {
        self.threads
    }

    /// Shape of the output, its first dimension 1.
    pub fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    /// Runs the network on one tensor, `[3, height, width]` as [`crate::Preprocessing::tensor`] makes it. The output
    /// is row-major in [`Network::output_shape`].
    ///
    /// # Errors
    /// A sentence where the tensor has another length, or the engine fails.
    pub fn run(&self, tensor: &[f32]) -> Result<Vec<f32>, String> {
        let needed: usize = self.input_shape.iter().product();
        if tensor.len() != needed {
            return Err(format!("a tensor of {} values, and its input has {needed}", tensor.len()));
        }
        self.run_on(|input| input.copy_from_slice(tensor))
    }

    /// The same on the tensor that `fill` writes, which is the engine's own.
    ///
    /// # Errors
    /// A sentence where the engine fails.
    pub fn run_on(&self, fill: impl FnOnce(&mut [f32])) -> Result<Vec<f32>, String> {
        match &self.engine {
            Engine::Tract(plan) => {
                let run = || -> TractResult<Vec<f32>> {
                    let mut input = Tensor::zero::<f32>(&self.input_shape)?;
                    fill(input.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?);
                    let outputs = plan.run(tvec!(input.into()))?;
                    let output = outputs.first().ok_or_else(|| TractError::msg("no output"))?;
                    Ok(output.to_plain_array_view::<f32>()?.iter().copied().collect())
                };
                run().map_err(|error| format!("{error:#}"))
            }
            #[cfg(feature = "onnxruntime")]
            Engine::OnnxRuntime(sessions) => {
                let mut input = vec![0.0; self.input_shape.iter().product()];
                fill(&mut input);
                let (shape, output) = sessions.run(self.input_shape, &input)?;
                if shape == self.output_shape { Ok(output) } else { Err(format!("its output is {shape:?}")) }
            }
        }
    }
}

impl Network {
    /// Time by operator, of `runs` runs on one tensor as [`run`](Self::run) takes it.
    ///
    /// # Errors
    /// A sentence where the tensor has another length, the engine fails, or it is another engine than tract.
    pub fn profile(&self, tensor: &[f32], runs: usize) -> Result<Profile, String> {
        match &self.engine {
            Engine::Tract(plan) => {
                let profile = Tensor::from_shape(&self.input_shape, tensor)
                    .and_then(|input| profile::profile(plan, &input, runs.max(1)));
                profile.map_err(|error| format!("{error:#}"))
            }
            #[cfg(feature = "onnxruntime")]
            Engine::OnnxRuntime(_) => Err("ONNX Runtime does not say where its time goes".to_owned()),
        }
    }
}

fn optimise(
    proto: &ModelProto,
    input_shape: [usize; 4],
    options: &EmbedderOptions,
) -> TractResult<(Arc<TypedRunnableModel>, Vec<usize>)> {
    let model = onnx().model_for_proto_model(proto)?;
    let (inputs, outputs) = (model.input_outlets()?.len(), model.output_outlets()?.len());
    if (inputs, outputs) != (1, 1) {
        return Err(TractError::msg(format!(
            "it has {inputs} inputs and {outputs} outputs, not one of each"
        )));
    }
    let model = model.with_input_fact(0, f32::fact(input_shape).into())?.into_typed()?;
    let fact = model.output_fact(0)?;
    let output_shape: Option<Vec<usize>> =
        fact.shape.as_concrete().map(<[usize]>::to_vec).filter(|_| fact.datum_type == f32::datum_type());
    let output_shape =
        output_shape.ok_or_else(|| TractError::msg("its output is not a float tensor of known shape"))?;
    let model = operators::rewrite(model, options)?;
    let model = model.into_decluttered()?.into_optimized()?;
    let threads = options.threads.count();
    // Threads of its own for each network: those of one wait for nobody else.
    let pool =
        || ThreadPoolBuilder::new().num_threads(threads).thread_name(|n| format!("embedder-{n}")).build();
    let executor =
        (threads > 1).then(pool).transpose()?.map(|pool| multithread::Executor::MultiThread(Arc::new(pool)));
    let plan = model.into_runnable_with_options(&RunOptions { executor, ..RunOptions::default() })?;
    Ok((plan, output_shape))
}
