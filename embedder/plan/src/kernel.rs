//! The convolutions.

use core::ops::Range;

pub use glimpse_kernels::Outputs;
use glimpse_kernels::{Damaged, Dense, DenseI8, Depthwise, DepthwiseI8, Layout, Reader, Window, Writer};

/// A convolution of any kind, with its weights packed.
#[derive(Debug)]
pub enum Kernel {
    /// Of all channels.
    Dense(Dense),
    /// Of each channel by itself.
    Depthwise(Depthwise),
    /// Of all channels, in bytes.
    DenseI8(DenseI8),
    /// Of each channel by itself, in bytes.
    DepthwiseI8(DepthwiseI8),
}

/// What a convolution reads.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// Real numbers.
    Real(&'a [f32]),
    /// Bytes.
    Bytes(&'a [u8]),
}

impl Kernel {
    /// Where it looks.
    pub const fn window(&self) -> &Window {
        match self {
            Self::Dense(dense) => dense.window(),
            Self::Depthwise(depthwise) => depthwise.window(),
            Self::DenseI8(dense) => dense.window(),
            Self::DepthwiseI8(depthwise) => depthwise.window(),
        }
    }

    /// Whether it reads bytes.
    pub const fn reads_bytes(&self) -> bool {
        matches!(self, Self::DenseI8(_) | Self::DepthwiseI8(_))
    }

    /// Whether it looks at each channel by itself.
    pub const fn is_depthwise(&self) -> bool {
        matches!(self, Self::Depthwise(_) | Self::DepthwiseI8(_))
    }

    /// How its input lies.
    pub const fn layout(&self) -> Layout {
        match self {
            Self::Dense(dense) => dense.layout(),
            Self::Depthwise(_) | Self::DenseI8(_) | Self::DepthwiseI8(_) => Layout::ChannelsLast,
        }
    }

    /// Of input and output.
    pub const fn channels(&self) -> [usize; 2] {
        match self {
            Self::Dense(dense) => dense.channels(),
            Self::Depthwise(depthwise) => [depthwise.channels(); 2],
            Self::DenseI8(dense) => dense.channels(),
            Self::DepthwiseI8(depthwise) => [depthwise.channels(); 2],
        }
    }

    /// Whether it can write bytes.
    pub const fn rounds(&self) -> bool {
        match self {
            Self::Dense(_) | Self::Depthwise(_) => false,
            Self::DenseI8(dense) => dense.rounds(),
            Self::DepthwiseI8(depthwise) => depthwise.rounds(),
        }
    }

    /// Multiply-adds for one image of a height and width; 0 where the kernel does not fit into it.
    pub fn multiply_adds(&self, image: [usize; 2]) -> u64 {
        let [height, width] = self.window().output(image).unwrap_or_default();
        let [inputs, outputs] = self.channels();
        let [tall, wide] = self.window().kernel;
        let depth = if self.is_depthwise() { 1 } else { inputs };
        [height, width, outputs, tall, wide, depth].iter().map(|x| *x as u64).product()
    }

    /// What it is called in reports.
    pub fn name(&self) -> &'static str {
        let point = self.window() == &Window::POINT;
        match (self.is_depthwise(), point, self.reads_bytes()) {
            (true, _, false) => "GlimpseDepthwise",
            (true, _, true) => "GlimpseDepthwiseI8",
            (false, true, false) => "GlimpsePointwise",
            (false, true, true) => "GlimpsePointwiseI8",
            (false, false, false) => "GlimpseDense",
            (false, false, true) => "GlimpseDenseI8",
        }
    }

    /// Makes these rows of the output: `residual` and `outputs` are the rows, `input` is the whole image.
    ///
    /// # Panics
    /// As the kernels: where something has another length than the shape says, or is of another kind.
    pub(crate) fn run(
        &self,
        rows: Range<usize>,
        image: [usize; 2],
        input: Input<'_>,
        residual: Option<&[f32]>,
        outputs: Outputs<'_>,
    ) {
        match (self, input, outputs.real) {
            (Self::Dense(dense), Input::Real(input), Some(real)) => {
                dense.run_rows(rows, image, input, residual, real);
            }
            (Self::Depthwise(depthwise), Input::Real(input), Some(real)) => {
                depthwise.run_rows(rows, image, input, real);
            }
            (Self::DenseI8(dense), Input::Bytes(input), real) => {
                dense.run_rows(rows, image, input, residual, Outputs { real, bytes: outputs.bytes });
            }
            (Self::DepthwiseI8(depthwise), Input::Bytes(input), real) => {
                depthwise.run_rows(rows, image, input, Outputs { real, bytes: outputs.bytes });
            }
            _ => panic!("an input and an output of the kind that the kernel has"),
        }
    }

    pub(crate) fn write(&self, to: &mut Writer) {
        match self {
            Self::Dense(dense) => {
                to.count(0);
                dense.write(to);
            }
            Self::Depthwise(depthwise) => {
                to.count(1);
                depthwise.write(to);
            }
            Self::DenseI8(dense) => {
                to.count(2);
                dense.write(to);
            }
            Self::DepthwiseI8(depthwise) => {
                to.count(3);
                depthwise.write(to);
            }
        }
    }

    pub(crate) fn read(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(match from.count()? {
            0 => Self::Dense(Dense::read(from)?),
            1 => Self::Depthwise(Depthwise::read(from)?),
            2 => Self::DenseI8(DenseI8::read(from)?),
            3 => Self::DepthwiseI8(DepthwiseI8::read(from)?),
            _ => return Err(Damaged("there is no such kernel")),
        })
    }
}
