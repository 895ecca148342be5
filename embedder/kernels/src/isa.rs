//! Which instructions a kernel uses, found out at run time.

/// A set of instructions that kernels are written for, slowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, on any processor: the twin that the others are tested against.
    Portable,
    /// 64-bit ARM.
    Neon,
    /// 64-bit ARM with the dot product of bytes: Cortex-A55, A75, A76 (Raspberry Pi 5) and later.
    NeonDot,
    /// x86-64 since 2013 (Haswell, Zen): AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI: Cascade Lake, Ice Lake, Zen 4 and later.
    Avx512,
}

impl Isa {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Neon, Self::NeonDot, Self::Avx2, Self::Avx512];

    /// The fastest that this processor has.
    pub fn detect() -> Self {
        Self::available().last().unwrap_or(Self::Portable)
    }

    /// Those that this processor has, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            Self::NeonDot => has::dot_product(),
            Self::Avx2 => has::avx2(),
            Self::Avx512 => has::avx512(),
        }
    }

    /// Itself, or the portable one where this processor lacks it.
    pub(crate) fn or_portable(self) -> Self {
        if self.is_available() { self } else { Self::Portable }
    }

    /// Values of `f32` in a register of its kernels.
    pub(crate) const fn width(self) -> usize {
        match self {
            Self::Avx512 => 16,
            _ => 8,
        }
    }

    /// Output channels in a register of its int8 kernels.
    pub(crate) const fn dot_width(self) -> usize {
        match self {
            Self::Avx512 => 16,
            Self::Portable | Self::Avx2 => 8,
            Self::Neon | Self::NeonDot => 4,
        }
    }

    /// Bits that are inverted in bytes that its int8 kernels write and read.
    pub const fn flip(self) -> u8 {
        match self {
            Self::Neon | Self::NeonDot => 0x80,
            Self::Portable | Self::Avx2 | Self::Avx512 => 0,
        }
    }

    /// What that takes away from their value.
    pub(crate) const fn flip_offset(self) -> i32 {
        self.flip() as i32
    }

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::NeonDot => "neon-dot",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod has {
    use std::is_x86_feature_detected as has;

    pub(super) const fn dot_product() -> bool {
        false
    }

    pub(super) fn avx2() -> bool {
        has!("avx2") && has!("fma")
    }

    pub(super) fn avx512() -> bool {
        avx2()
            && has!("avx512f")
            && has!("avx512bw")
            && has!("avx512dq")
            && has!("avx512vl")
            && has!("avx512vnni")
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod has {
    #[cfg(target_arch = "aarch64")]
    pub(super) fn dot_product() -> bool {
        std::arch::is_aarch64_feature_detected!("dotprod")
    }

    #[cfg(not(target_arch = "aarch64"))]
    pub(super) const fn dot_product() -> bool {
        false
    }

    pub(super) const fn avx2() -> bool {
        false
    }

    pub(super) const fn avx512() -> bool {
        false
    }
}
