//! The engine's view of our kernels.

use std::sync::Arc;

use glimpse_kernels::{Layout, Window};
use glimpse_plan::{Alone, Input, Kernel, Outputs, Workers};
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
    pub(crate) kernel: Arc<Kernel>,
    /// Height and width of the input, in pixels.
    pub(crate) image: [usize; 2],
    pub(crate) real: bool,
    pub(crate) bytes: bool,
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

    /// Whether each pixel of the output comes of one of the input, and these lie one after the other.
    fn is_by_pixel(&self) -> bool {
        !self.kernel.is_depthwise()
            && self.kernel.layout() == Layout::ChannelsLast
            && self.kernel.window() == &Window::POINT
    }

    fn output_size(&self) -> TractResult<[usize; 2]> {
        self.kernel.window().output(self.image).context("a kernel that fits into its image")
    }

    fn input_shape(&self, images: usize) -> [usize; 4] {
        let ([height, width], [channels, _]) = (self.image, self.kernel.channels());
        match self.kernel.layout() {
            Layout::Planes => [images, channels, height, width],
            Layout::ChannelsLast => [images, height, width, channels],
        }
    }
}

impl Op for Convolution {
    fn name(&self) -> StaticName {
        self.kernel.name().into()
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
        // To a 1x1 convolution a batch is one tall image: its weights are then read once for all.
        let (images, image) = if self.is_by_pixel() {
            (1, [images * self.image[0], self.image[1]])
        } else {
            (images, self.image)
        };
        for number in 0..images {
            let residual = residual.map(|residual| part(residual, number, images));
            self.image((number, images), image, &inputs[0], residual, (real.as_mut(), bytes.as_mut()))?;
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

impl Convolution {
    /// Runs on one of several images of a height and width.
    fn image(
        &self,
        (number, images): (usize, usize),
        image: [usize; 2],
        input: &Tensor,
        residual: Option<&[f32]>,
        (real, bytes): (Option<&mut Tensor>, Option<&mut Tensor>),
    ) -> TractResult<()> {
        let mut real = real.map(Tensor::try_as_plain_ram_mut).transpose()?;
        let mut bytes = bytes.map(Tensor::try_as_plain_ram_mut).transpose()?;
        let real = real.as_mut().map(|real| real.as_slice_mut::<f32>()).transpose()?;
        let bytes = bytes.as_mut().map(|bytes| bytes.as_slice_mut::<u8>()).transpose()?;
        let outputs = Outputs {
            real: real.map(|real| part_mut(real, number, images)),
            bytes: bytes.map(|bytes| part_mut(bytes, number, images)),
        };
        let input = input.try_as_plain_ram()?;
        let input = if self.kernel.reads_bytes() {
            Input::Bytes(part(input.as_slice::<u8>()?, number, images))
        } else {
            Input::Real(part(input.as_slice::<f32>()?, number, images))
        };
        match multithread::current_tract_executor() {
            multithread::Executor::MultiThread(pool) => {
                self.kernel.run_image(&Pool(&pool), image, input, residual, outputs);
            }
            _ => self.kernel.run_image(&Alone, image, input, residual, outputs),
        }
        Ok(())
    }
}

/// Threads that run a convolution together.
pub(crate) struct Pool<'a>(pub(crate) &'a ThreadPool);

impl Workers for Pool<'_> {
    fn count(&self) -> usize {
        self.0.current_num_threads()
    }

    fn share<T: Send>(&self, shares: Vec<T>, run: impl Fn(T) + Send + Sync) {
        self.0.install(|| shares.into_par_iter().for_each(run));
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
        let multiply_adds = self.kernel.multiply_adds(self.image) as i64 * images as i64;
        Ok(tvec!((Cost::FMA(f32::datum_type()), multiply_adds.to_dim())))
    }
}
