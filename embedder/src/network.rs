//! An ONNX network in tract.

use std::borrow::Borrow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use glimpse_plan::{Alone, Plan, Workspace};
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::multithread;

use crate::metadata::{ModelError, ModelFile};
use crate::operators::convolution::Pool;
use crate::{EmbedderOptions, Profile, Threads, flatten, fold, operators, profile};

/// An image network, optimised for one input size: `[1, 3, height, width]` in, any shape out.
///
/// Threads share one network by reference; each run has its own state.
pub struct Network {
    engine: Engine,
    input_shape: [usize; 4],
    output_shape: Vec<usize>,
    batch: usize,
    /// What our own operators use, or that there are none.
    instructions: &'static str,
    threads: usize,
}

enum Engine {
    /// Steps of our own, where all of the graph is known.
    Plan(Flat),
    Tract {
        plan: Arc<TypedRunnableModel>,
        /// Why it is no plan of ours, where that was tried.
        not_flat: Option<String>,
    },
    #[cfg(feature = "onnxruntime")]
    OnnxRuntime(crate::onnxruntime::Sessions),
}

/// A plan with what it needs to run.
struct Flat {
    plan: Plan,
    /// Those that no thread uses: as many as there ever were threads at a time.
    idle: Mutex<Vec<Workspace>>,
    pool: Option<Arc<ThreadPool>>,
}

impl Flat {
    fn run(&self, tensor: &[f32], before: impl FnMut(usize)) -> Vec<f32> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let mut workspace = kept.unwrap_or_else(|| self.plan.workspace());
        let mut output = vec![0.0; self.plan.output_len()];
        match &self.pool {
            Some(pool) => self.plan.run_with(&Pool(pool), &mut workspace, tensor, &mut output, before),
            None => self.plan.run_with(&Alone, &mut workspace, tensor, &mut output, before),
        }
        idle().push(workspace);
        output
    }
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
        let unusable = |reason: String| ModelError::Unusable { path, reason };
        if let Some(graph) = &mut proto.graph {
            fold::dequantize_weights(graph);
        }
        let shape = |batch: usize| [batch, 3, height as usize, width as usize];
        let several = Some(options.batch.get()).filter(|batch| *batch > 1);
        let several = several.and_then(|batch| {
            let optimised = optimise(&proto, shape(batch), options).ok()?;
            (optimised.output_shape.first() == Some(&batch)).then_some((optimised, batch))
        });
        let (Optimised { engine, mut output_shape, is_ours }, batch) = match several {
            Some(several) => several,
            None => (optimise(proto, shape(1), options).map_err(|error| unusable(format!("{error:#}")))?, 1),
        };
        if batch > 1 {
            output_shape[0] = 1;
        }
        let input_shape = [1, 3, height as usize, width as usize];
        let instructions = if is_ours { options.isa.name() } else { "none" };
        let threads = options.threads.count();
        Ok(Self { engine, input_shape, output_shape, batch, instructions, threads })
    }

    /// Runs a plan whose output is `[1, N]`.
    ///
    /// # Errors
    /// What keeps its threads from being started.
    pub(crate) fn of_plan(plan: Plan, options: &EmbedderOptions) -> Result<Self, String> {
        let [channels, height, width] = plan.input();
        let output_shape = vec![1, plan.output_len()];
        let engine = Engine::Plan(Flat {
            plan,
            idle: Mutex::default(),
            pool: pool(options.threads).map_err(|error| error.to_string())?,
        });
        let (instructions, threads) = (options.isa.name(), options.threads.count());
        Ok(Self {
            engine,
            input_shape: [1, channels, height, width],
            output_shape,
            batch: 1,
            instructions,
            threads,
        })
    }

    /// Its plan, or why it has none.
    pub(crate) fn into_plan(self) -> Result<Plan, String> {
        match self.engine {
            Engine::Plan(flat) => Ok(flat.plan),
            Engine::Tract { not_flat, .. } => {
                Err(not_flat.unwrap_or_else(|| "no operator in it is one of ours".to_owned()))
            }
            #[cfg(feature = "onnxruntime")]
            Engine::OnnxRuntime(_) => Err("ONNX Runtime runs it".to_owned()),
        }
    }

    /// Its plan, where it is run by one; another of the same steps may be put in its place.
    pub(crate) const fn plan_mut(&mut self) -> Option<&mut Plan> {
        match &mut self.engine {
            Engine::Plan(flat) => Some(&mut flat.plan),
            Engine::Tract { .. } => None,
            #[cfg(feature = "onnxruntime")]
            Engine::OnnxRuntime(_) => None,
        }
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
        Ok(Self { engine, input_shape, output_shape, batch: 1, instructions: "none", threads: 1 })
    }

    /// Shape of the input for one photo: `[1, 3, height, width]`.
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

    /// Photos that it takes together.
    pub const fn batch(&self) -> usize {
        self.batch
    }

    /// Shape of the output for one photo, its first dimension 1 where it has one for photos.
    pub fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    /// Runs the network on one tensor, `[3, height, width]` as [`crate::Preprocessing::tensor`] makes it. The output
    /// is row-major in [`Network::output_shape`].
    ///
    /// # Errors
    /// A sentence where the tensor has another length, or the engine fails.
    pub fn run(&self, tensor: &[f32]) -> Result<Vec<f32>, String> {
        self.check(tensor)?;
        self.run_on(|input| input.copy_from_slice(tensor))
    }

    /// Whether a tensor has the length of one photo's.
    pub(crate) fn check(&self, tensor: &[f32]) -> Result<(), String> {
        let needed: usize = self.input_shape.iter().product();
        if tensor.len() == needed {
            Ok(())
        } else {
            Err(format!("a tensor of {} values, and its input has {needed}", tensor.len()))
        }
    }

    /// The same on the tensor that `fill` writes, which is the engine's own.
    ///
    /// # Errors
    /// A sentence where the engine fails.
    pub fn run_on(&self, fill: impl FnOnce(&mut [f32])) -> Result<Vec<f32>, String> {
        self.run_batch(1, fill)
    }

    /// Runs the network on `photos` tensors together, at most [`batch`](Self::batch), which `fill` writes one after the other. The
    /// outputs come in the same order. A network loaded for a batch takes as long for fewer photos as for all of it.
    ///
    /// # Errors
    /// A sentence where the engine fails, or there are too many.
    pub fn run_batch(&self, photos: usize, fill: impl FnOnce(&mut [f32])) -> Result<Vec<f32>, String> {
        if photos > self.batch {
            return Err(format!("{photos} photos at a time, and it was loaded for {}", self.batch));
        }
        let mut input_shape = self.input_shape;
        let length = photos * input_shape.iter().product::<usize>();
        let values = photos * self.output_shape.iter().product::<usize>();
        input_shape[0] = self.batch;
        match &self.engine {
            Engine::Plan(flat) => {
                let mut input = vec![0.0; length];
                fill(&mut input);
                Ok(flat.run(&input, |_| {}))
            }
            Engine::Tract { plan, .. } => {
                let run = || -> TractResult<Vec<f32>> {
                    let mut input = Tensor::zero::<f32>(&input_shape)?;
                    fill(&mut input.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?[..length]);
                    let outputs = plan.run(tvec!(input.into()))?;
                    let output = outputs.first().ok_or_else(|| TractError::msg("no output"))?;
                    Ok(output.to_plain_array_view::<f32>()?.iter().take(values).copied().collect())
                };
                run().map_err(|error| format!("{error:#}"))
            }
            #[cfg(feature = "onnxruntime")]
            Engine::OnnxRuntime(sessions) => {
                let mut input = vec![0.0; length];
                fill(&mut input);
                let (shape, output) = sessions.run(input_shape, &input)?;
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
        self.check(tensor)?;
        match &self.engine {
            Engine::Plan(flat) => Ok(profile::of_plan(&flat.plan, runs.max(1), |before| {
                flat.run(tensor, before);
            })),
            Engine::Tract { plan, .. } => {
                let profile = Tensor::from_shape(&self.input_shape, tensor)
                    .and_then(|input| profile::profile(plan, &input, runs.max(1)));
                profile.map_err(|error| format!("{error:#}"))
            }
            #[cfg(feature = "onnxruntime")]
            Engine::OnnxRuntime(_) => Err("ONNX Runtime does not say where its time goes".to_owned()),
        }
    }
}

/// A network as it is run.
struct Optimised {
    engine: Engine,
    output_shape: Vec<usize>,
    /// Whether there are operators of ours in it.
    is_ours: bool,
}

fn optimise(
    proto: impl Borrow<ModelProto>,
    input_shape: [usize; 4],
    options: &EmbedderOptions,
) -> TractResult<Optimised> {
    // tract has assertions that a foreign model can reach: to us they are one more reason why it cannot be run.
    catch_unwind(AssertUnwindSafe(|| try_optimise(proto, input_shape, options)))
        .unwrap_or_else(|_| Err(TractError::msg("the engine gave up on its graph")))
}

fn try_optimise(
    proto: impl Borrow<ModelProto>,
    input_shape: [usize; 4],
    options: &EmbedderOptions,
) -> TractResult<Optimised> {
    let model = onnx().model_for_proto_model(proto.borrow())?;
    // Its weights, where nobody needs them again.
    drop(proto);
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
    let is_ours = operators::are_in(&model);
    let model = model.into_decluttered()?;
    let pool = pool(options.threads)?;
    let flat = is_ours.then(|| flatten::flatten(&model, options.isa));
    let engine = match flat {
        Some(Ok(plan)) => Engine::Plan(Flat { plan, idle: Mutex::default(), pool }),
        not_flat => {
            let not_flat = not_flat.and_then(Result::err).map(|reason| reason.to_string());
            if let Some(reason) = &not_flat {
                tracing::debug!(%reason, "the engine runs this network, with our operators in its graph");
            }
            let executor = pool.map(multithread::Executor::MultiThread);
            let options = RunOptions { executor, ..RunOptions::default() };
            let plan = model.into_optimized()?.into_runnable_with_options(&options)?;
            Engine::Tract { plan, not_flat }
        }
    };
    Ok(Optimised { engine, output_shape, is_ours })
}

/// Threads of its own for each network: those of one wait for nobody else.
fn pool(threads: Threads) -> Result<Option<Arc<ThreadPool>>, ThreadPoolBuildError> {
    let threads = threads.count();
    let builder = ThreadPoolBuilder::new().num_threads(threads).thread_name(|n| format!("embedder-{n}"));
    (threads > 1).then(|| builder.build().map(Arc::new)).transpose()
}
