//! The engine's view of our kernels.

use std::ops::Range;
use std::sync::Arc;

use glimpse_kernels::{Dense, DenseI8, Depthwise, DepthwiseI8, Layout, Outputs, Window};
use rayon::ThreadPool;
use rayon::prelude::*;
use tract_onnx::prelude::*;
#[allow(clippy::wildcard_imports, reason = "what the engine's macros name; not reported in tests")]
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::{Cost, EvalOp, Op, TypedOp};

/// A convolution with its bias, residual and clamp: `[N, height, width, channels]` in and out (planes in, where its layout says
/// so). One of bytes writes real numbers, bytes, or both, in this order.
#[derive(Debug, Clone)]
pub(crate) struct Convolution {
    kernel: Arc<Kernel>,
    /// Height and width of the input, in pixels.
    image: [usize; 2],
    real: bool,
    bytes: bool,
}

#[derive(Debug)]
pub(crate) enum Kernel {
    Dense(Dense),
    Depthwise(Depthwise),
    DenseI8(DenseI8),
    DepthwiseI8(DepthwiseI8),
}

impl Kernel {
    fn window(&self) -> &Window {
        match self {
            Self::Dense(dense) => dense.window(),
            Self::Depthwise(depthwise) => depthwise.window(),
            Self::DenseI8(dense) => dense.window(),
            Self::DepthwiseI8(depthwise) => depthwise.window(),
        }
    }

    const fn reads_bytes(&self) -> bool {
        matches!(self, Self::DenseI8(_) | Self::DepthwiseI8(_))
    }

    const fn is_depthwise(&self) -> bool {
        matches!(self, Self::Depthwise(_) | Self::DepthwiseI8(_))
    }

    /// Of input and output.
    fn channels(&self) -> [usize; 2] {
        match self {
            Self::Dense(dense) => dense.channels(),
            Self::Depthwise(depthwise) => [depthwise.channels(); 2],
            Self::DenseI8(dense) => dense.channels(),
            Self::DepthwiseI8(depthwise) => [depthwise.channels(); 2],
        }
    }
}

impl PartialEq for Convolution {
    fn eq(&self, other: &Self) -> bool {
        let rest = |all: &Self| (all.image, all.real, all.bytes);
        Arc::ptr_eq(&self.kernel, &other.kernel) && rest(self) == rest(other)
    }
}

impl Eq for Convolution {}

impl Convolution {
    pub(super) fn new(kernel: Kernel, image: [usize; 2], real: bool, bytes: bool) -> Self {
        Self { kernel: Arc::new(kernel), image, real, bytes }
    }

    fn output_size(&self) -> TractResult<[usize; 2]> {
        self.kernel.window().output(self.image).context("a kernel that fits into its image")
    }

    fn input_shape(&self, images: usize) -> [usize; 4] {
        let ([height, width], [channels, _]) = (self.image, self.kernel.channels());
        match &*self.kernel {
            Kernel::Dense(dense) if dense.layout() == Layout::Planes => [images, channels, height, width],
            _ => [images, height, width, channels],
        }
    }

    /// Multiply-adds for one image.
    pub(crate) fn multiply_adds(&self) -> u64 {
        let [height, width] = self.output_size().unwrap_or_default();
        let [inputs, outputs] = self.kernel.channels();
        let [tall, wide] = self.kernel.window().kernel;
        let depth = if self.kernel.is_depthwise() { 1 } else { inputs };
        [height, width, outputs, tall, wide, depth].iter().map(|x| *x as u64).product()
    }
}

impl Op for Convolution {
    fn name(&self) -> StaticName {
        let point = self.kernel.window() == &Window::POINT;
        match (self.kernel.is_depthwise(), point, self.kernel.reads_bytes()) {
            (true, _, false) => "GlimpseDepthwise".into(),
            (true, _, true) => "GlimpseDepthwiseI8".into(),
            (false, true, false) => "GlimpsePointwise".into(),
            (false, true, true) => "GlimpsePointwiseI8".into(),
            (false, false, false) => "GlimpseDense".into(),
            (false, false, true) => "GlimpseDenseI8".into(),
        }
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let ([inputs, outputs], window) = (self.kernel.channels(), self.kernel.window());
        Ok(vec![format!("{inputs} to {outputs} channels, {window:?}")])
    }

    op_as_typed_op!();
}

impl EvalOp for Convolution {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let [height, width] = self.output_size()?;
        let images = inputs[0].shape().first().copied().unwrap_or_default();
        ensure!(inputs[0].shape() == self.input_shape(images), "an input of {:?}", self.input_shape(images));
        let shape = [images, height, width, self.kernel.channels()[1]];
        let residual = inputs.get(1).map(|residual| residual.try_as_plain_ram()).transpose()?;
        let residual = residual.as_ref().map(PlainView::as_slice::<f32>).transpose()?;
        let length: usize = shape.iter().product();
        ensure!(residual.is_none_or(|residual| residual.len() == length), "a residual of {shape:?}");
        // SAFETY: a kernel writes every value that it is given room for.
        let (mut real, mut bytes) = unsafe {
            let real = self.real.then(|| Tensor::uninitialized::<f32>(&shape)).transpose()?;
            (real, self.bytes.then(|| Tensor::uninitialized::<u8>(&shape)).transpose()?)
        };
        for image in 0..images {
            let residual = residual.map(|residual| part(residual, image, images));
            self.image(image, images, &inputs[0], residual, (real.as_mut(), bytes.as_mut()))?;
        }
        Ok([real, bytes].into_iter().flatten().map(IntoTValue::into_tvalue).collect())
    }
}

/// The part of a tensor that one of several images has.
fn part<T>(all: &[T], image: usize, images: usize) -> &[T] {
    let size = all.len() / images;
    &all[image * size..][..size]
}

/// As [`part`].
fn part_mut<T>(all: &mut [T], image: usize, images: usize) -> &mut [T] {
    let size = all.len() / images;
    &mut all[image * size..][..size]
}

/// Multiply-adds that are worth waking another thread for.
const MULTIPLY_ADDS_A_THREAD: u64 = 200_000;

/// Rows of the output that one thread makes.
struct Rows<'a> {
    rows: Range<usize>,
    residual: Option<&'a [f32]>,
    outputs: Outputs<'a>,
}

impl Convolution {
    fn image(
        &self,
        image: usize,
        images: usize,
        input: &Tensor,
        residual: Option<&[f32]>,
        (real, bytes): (Option<&mut Tensor>, Option<&mut Tensor>),
    ) -> TractResult<()> {
        let [height, width] = self.output_size()?;
        let line = width * self.kernel.channels()[1];
        let mut real = real.map(Tensor::try_as_plain_ram_mut).transpose()?;
        let mut bytes = bytes.map(Tensor::try_as_plain_ram_mut).transpose()?;
        let real = real.as_mut().map(|real| real.as_slice_mut::<f32>()).transpose()?;
        let bytes = bytes.as_mut().map(|bytes| bytes.as_slice_mut::<u8>()).transpose()?;
        let (mut real, mut bytes) = (
            real.map(|real| part_mut(real, image, images)),
            bytes.map(|bytes| part_mut(bytes, image, images)),
        );
        let pool = match multithread::current_tract_executor() {
            multithread::Executor::MultiThread(pool) if pool.current_num_threads() > 1 => Some(pool),
            _ => None,
        };
        let threads = pool.as_ref().map_or(1, |pool| pool.current_num_threads());
        let worth = usize::try_from(self.multiply_adds() / MULTIPLY_ADDS_A_THREAD)?.clamp(1, threads);
        // Each output value is the same however the rows are shared out.
        let step = height.div_ceil(worth).max(1);
        let mut shares = Vec::with_capacity(worth);
        for first in (0..height).step_by(step) {
            let rows = first..(first + step).min(height);
            let length = rows.len() * line;
            let outputs = Outputs {
                real: real.as_mut().and_then(|real| real.split_off_mut(..length)),
                bytes: bytes.as_mut().and_then(|bytes| bytes.split_off_mut(..length)),
            };
            let residual = residual.map(|residual| &residual[first * line..][..length]);
            shares.push(Rows { rows, residual, outputs });
        }
        let input = input.try_as_plain_ram()?;
        match &*self.kernel {
            Kernel::Dense(dense) => {
                let input = part(input.as_slice::<f32>()?, image, images);
                share(pool.as_deref(), shares, |Rows { rows, residual, outputs }| {
                    if let Some(real) = outputs.real {
                        dense.run_rows(rows, self.image, input, residual, real);
                    }
                });
            }
            Kernel::Depthwise(depthwise) => {
                let input = part(input.as_slice::<f32>()?, image, images);
                share(pool.as_deref(), shares, |Rows { rows, outputs, .. }| {
                    if let Some(real) = outputs.real {
                        depthwise.run_rows(rows, self.image, input, real);
                    }
                });
            }
            Kernel::DenseI8(dense) => {
                let input = part(input.as_slice::<u8>()?, image, images);
                share(pool.as_deref(), shares, |Rows { rows, residual, outputs }| {
                    dense.run_rows(rows, self.image, input, residual, outputs);
                });
            }
            Kernel::DepthwiseI8(depthwise) => {
                let input = part(input.as_slice::<u8>()?, image, images);
                share(pool.as_deref(), shares, |Rows { rows, outputs, .. }| {
                    depthwise.run_rows(rows, self.image, input, outputs);
                });
            }
        }
        Ok(())
    }
}

/// Runs each share, on the threads of a pool where there is one.
fn share<'a>(pool: Option<&ThreadPool>, shares: Vec<Rows<'a>>, run: impl Fn(Rows<'a>) + Send + Sync) {
    match pool.filter(|_| shares.len() > 1) {
        Some(pool) => pool.install(|| shares.into_par_iter().for_each(run)),
        None => shares.into_iter().for_each(run),
    }
}

impl TypedOp for Convolution {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let images = inputs[0].shape.as_concrete().and_then(|shape| shape.first().copied());
        let images = images.context("a known number of images")?;
        let expected = self.input_shape(images);
        ensure!(inputs[0].shape.as_concrete() == Some(&expected), "an input of {expected:?}");
        let [height, width] = self.output_size()?;
        let shape = [images, height, width, self.kernel.channels()[1]];
        let real = self.real.then(|| f32::fact(shape));
        Ok(real.into_iter().chain(self.bytes.then(|| u8::fact(shape))).collect())
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        let images = inputs[0].shape.as_concrete().map_or(1, |shape| shape[0]);
        let multiply_adds = self.multiply_adds() as i64 * images as i64;
        Ok(tvec!((Cost::FMA(f32::datum_type()), multiply_adds.to_dim())))
    }
}
