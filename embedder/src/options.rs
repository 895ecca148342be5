//! How a network is run.

use glimpse_kernels::{Isa, Window};

/// Which operators of our own take the place of the engine's. The default is what is measured to be fastest on this processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbedderOptions {
    /// The instructions that they use.
    pub isa: Isa,
    /// 1x1 convolutions.
    pub pointwise: bool,
    /// Larger convolutions of all channels.
    pub dense: bool,
    /// Convolutions of each channel by itself.
    pub depthwise: bool,
    /// Convolutions of networks in QDQ form, of any kind, in bytes.
    pub int8: bool,
}

impl EmbedderOptions {
    /// None: the engine as it comes.
    pub fn engine_alone() -> Self {
        Self { isa: Isa::detect(), pointwise: false, dense: false, depthwise: false, int8: false }
    }

    /// All of them, whether or not they win here, with instructions that this processor has.
    pub fn all(isa: Isa) -> Self {
        Self { isa, pointwise: true, dense: true, depthwise: true, int8: true }
    }

    /// The instructions for a convolution of `f32`, if it is to be ours.
    pub(crate) fn kernels(&self, depthwise: bool, window: &Window) -> Option<Isa> {
        let ours = match (depthwise, *window == Window::POINT) {
            (true, _) => self.depthwise,
            (false, true) => self.pointwise,
            (false, false) => self.dense,
        };
        ours.then_some(self.isa)
    }
}

impl Default for EmbedderOptions {
    /// On ARM, and on processors without vectors that we know, the engine is as fast or faster (docs/performance.md).
    fn default() -> Self {
        match Isa::detect() {
            isa @ (Isa::Avx2 | Isa::Avx512) => Self::all(isa),
            isa => Self { int8: isa != Isa::Portable, ..Self::engine_alone() },
        }
    }
}
