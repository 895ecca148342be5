//! How a network is run.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use glimpse_kernels::{Isa, Window};

/// Threads that run one network together. An embedding is the same, bit for bit, by however many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// So many.
    Count(NonZeroUsize),
    /// One for each processor that this process may use.
    All,
}

/// More than any machine has that embeds photos.
const THREADS_MAX: usize = 1024;

impl Threads {
    /// The thread that asks.
    pub const ONE: Self = Self::Count(NonZeroUsize::MIN);

    /// How many that are here.
    pub fn count(self) -> usize {
        match self {
            Self::Count(count) => count.get(),
            Self::All => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        }
    }
}

impl Default for Threads {
    fn default() -> Self {
        Self::ONE
    }
}

impl From<NonZeroUsize> for Threads {
    fn from(count: NonZeroUsize) -> Self {
        Self::Count(count)
    }
}

impl FromStr for Threads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "all" {
            return Ok(Self::All);
        }
        let count = text.parse::<NonZeroUsize>().ok().filter(|count| count.get() <= THREADS_MAX);
        count.map(Self::Count).ok_or_else(|| format!("expected a number of 1 to {THREADS_MAX}, or all"))
    }
}

impl fmt::Display for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::All => f.write_str("all"),
        }
    }
}

/// Which operators of our own take the place of the engine's. The default is what is measured to be fastest on this processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each switches something of its own")]
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
    /// Threads, for our operators and the engine's.
    pub threads: Threads,
    /// Photos that go through the network together ([`Network::run_batch`](crate::Network::run_batch)); a network whose graph holds
    /// for a single one is given them one by one.
    pub batch: NonZeroUsize,
}

impl EmbedderOptions {
    /// None: the engine as it comes.
    pub fn engine_alone() -> Self {
        Self {
            isa: Isa::detect(),
            pointwise: false,
            dense: false,
            depthwise: false,
            int8: false,
            threads: Threads::ONE,
            batch: NonZeroUsize::MIN,
        }
    }

    /// All of them, whether or not they win here, with instructions that this processor has.
    pub fn all(isa: Isa) -> Self {
        Self {
            isa,
            pointwise: true,
            dense: true,
            depthwise: true,
            int8: true,
            threads: Threads::ONE,
            batch: NonZeroUsize::MIN,
        }
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
    /// On processors without vectors that we know, the engine is faster (docs/performance.md).
    fn default() -> Self {
        match Isa::detect() {
            Isa::Portable => Self::engine_alone(),
            isa => Self::all(isa),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_a_number_or_all() {
        assert_eq!("1".parse(), Ok(Threads::ONE));
        assert_eq!("all".parse(), Ok(Threads::All));
        assert_eq!("4".parse::<Threads>().map(Threads::count), Ok(4));
        assert!(Threads::All.count() >= 1);
        for wrong in ["0", "-1", "some", "", "1025", "1.5"] {
            assert!(wrong.parse::<Threads>().unwrap_err().contains("all"), "{wrong}");
        }
    }
}
