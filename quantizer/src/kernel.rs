//! Which instructions a scan uses, found out at run time.

use thiserror::Error;

/// A set of instructions that scans are written for. All give the same numbers; see [`crate::scan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Plain Rust, on any processor: the scalar twin that the others are tested against.
    Portable,
    /// x86-64 since 2013 (Haswell, Zen).
    Avx2,
    /// x86-64 with AVX-512 VBMI and VNNI: Ice Lake, Sapphire Rapids, Zen 4 and later.
    Avx512,
    /// aarch64.
    Neon,
}

/// This processor lacks what a kernel needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("this processor cannot run the {} kernel: leave the choice to us, or take the portable one", .0.name())]
pub struct KernelMissing(pub Kernel);

impl Kernel {
    /// All there are, slowest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512];

    /// The fastest that this processor has. Without the feature `std` nothing can be asked at run time, and what the
    /// program was compiled for decides.
    pub fn detect() -> Self {
        let fastest = Self::ALL.into_iter().rev().find(|kernel| kernel.is_available());
        fastest.unwrap_or(Self::Portable)
    }

    /// Those that this processor has, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|kernel| kernel.is_available())
    }

    /// Whether this processor has what the kernel needs.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => has::avx2(),
            Self::Avx512 => has::avx512(),
            // Part of the architecture.
            Self::Neon => cfg!(target_arch = "aarch64"),
        }
    }

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    /// The kernel itself where this processor can run it.
    ///
    /// # Errors
    /// [`KernelMissing`] where it cannot.
    pub fn checked(self) -> Result<Self, KernelMissing> {
        if self.is_available() { Ok(self) } else { Err(KernelMissing(self)) }
    }
}

#[cfg(all(target_arch = "x86_64", feature = "std"))]
mod has {
    pub(super) fn avx2() -> bool {
        std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("fma")
            && std::is_x86_feature_detected!("f16c")
    }

    pub(super) fn avx512() -> bool {
        avx2()
            && std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512vl")
            && std::is_x86_feature_detected!("avx512vbmi")
            && std::is_x86_feature_detected!("avx512vnni")
    }
}

#[cfg(not(all(target_arch = "x86_64", feature = "std")))]
mod has {
    pub(super) const fn avx2() -> bool {
        cfg!(all(
            target_arch = "x86_64",
            target_feature = "avx2",
            target_feature = "fma",
            target_feature = "f16c"
        ))
    }

    pub(super) const fn avx512() -> bool {
        cfg!(all(
            target_arch = "x86_64",
            target_feature = "avx2",
            target_feature = "fma",
            target_feature = "f16c",
            target_feature = "avx512f",
            target_feature = "avx512bw",
            target_feature = "avx512vl",
            target_feature = "avx512vbmi",
            target_feature = "avx512vnni"
        ))
    }
}
