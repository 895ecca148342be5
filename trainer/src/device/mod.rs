//! What networks train on, by name.
//!
//! | name | what | cargo feature |
//! |---|---|---|
//! | `cpu` | Burn's `flex`, pure Rust | always there |
//! | `wgpu` | WGSL shaders, through whichever graphics API there is: any GPU, and Mesa's software driver | `wgpu` |
//! | `vulkan` | SPIR-V shaders on Vulkan: faster where the driver is a real one | `vulkan` |
//! | `metal` | MSL shaders on Metal | `metal` |
//! | `cuda`, `rocm` | NVIDIA's and AMD's own | `cuda`, `rocm` |
//!
//! [`DeviceName::open`] is where a missing driver is found, before any work and without a panic. In a build with the feature
//! `vulkan` the device `wgpu` runs SPIR-V too, wherever the adapter allows it: that choice is Burn's.
//!
//! What is absent: a choice among several GPUs. Burn takes the fastest that it sees; `CUBECL_WGPU_DEFAULT_DEVICE` (for
//! example `IntegratedGpu(0)`) and `CUDA_VISIBLE_DEVICES` are for the others.

#[cfg(feature = "wgpu")]
mod graphics;

use std::fmt;
use std::str::FromStr;

use burn::tensor::{Device, FloatDType};
use clap::ValueEnum;
use thiserror::Error;

use crate::training::Arithmetic;

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceName {
    /// The processor.
    Cpu,
    /// Any GPU, by WGSL.
    Wgpu,
    /// A GPU with a Vulkan driver, by SPIR-V.
    Vulkan,
    /// Apple's GPUs, by MSL.
    Metal,
    /// NVIDIA's GPUs.
    Cuda,
    /// AMD's GPUs.
    Rocm,
}

/// How many bits products have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// 32 everywhere.
    Full,
    /// 16 in convolutions, 32 in weights, norms, pooling, losses and optimizer: see [`Arithmetic`].
    Mixed,
}

/// Why a device cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DeviceError {
    /// Its cargo feature is off.
    #[error(
        "this build has no device {0}: make one with `cargo build --release -p glimpse-trainer --features {0}`, or use \
         --device cpu"
    )]
    NotBuiltIn(DeviceName),
    /// Nothing to run on.
    #[error("there is no driver for device {0}: {hint}, or use --device cpu (`glimpse-trainer devices` lists what is there)", hint = .0.driver())]
    NoDriver(DeviceName),
    /// SPIR-V of this kind crashes on Mesa's lavapipe (22.3 and 25.0) and gives wrong gradients on SwiftShader.
    #[error(
        "the only Vulkan driver here is a software one, which SPIR-V shaders crash: use --device wgpu of a build with \
         `--features wgpu` alone, or --device cpu"
    )]
    SoftwareDriver,
    /// A driver is there and says no.
    #[error("device {device} cannot be opened: {reason}")]
    Refused {
        /// Which.
        device: DeviceName,
        /// What Burn says.
        reason: String,
    },
    /// Mixed precision is slower there: a step of a MobileNetV2 of width 0.35 at 96 px took 130 ms in f32, 141 ms in bf16 and
    /// 578 ms in f16 (Burn 0.22.1, 2 cores, Intel Xeon).
    #[error(
        "--precision mixed is for GPUs: 16-bit floats are slower than 32-bit ones on the processor, so use --precision full"
    )]
    HalfInSoftware,
    /// Mixed precision is not possible there.
    #[error("device {0} computes neither bf16 nor f16 here: use --precision full")]
    NoHalf(DeviceName),
    /// Burn's default device is another one, and has no driver.
    #[error(
        "Burn reads the optimizer's state by way of {default}, the default device of this build, which has no driver here: \
         set BURN_DEVICE={wanted} in the environment"
    )]
    DefaultDevice {
        /// The default device.
        default: DeviceName,
        /// Burn's name of the one in use.
        wanted: &'static str,
    },
}

/// Something that a device name can stand for on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// As it calls itself.
    pub name: String,
    /// Driver and version, where it says so.
    pub driver: String,
    /// Discrete, integrated, virtual or software.
    pub kind: &'static str,
    /// Number formats of mixed precision that it computes.
    pub half: Vec<&'static str>,
}

impl DeviceName {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Cpu, Self::Wgpu, Self::Vulkan, Self::Metal, Self::Cuda, Self::Rocm];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Wgpu => "wgpu",
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
        }
    }

    /// Whether this build has it.
    pub fn is_built_in(self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Metal => cfg!(feature = "metal"),
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Rocm => cfg!(feature = "rocm"),
        }
    }

    /// The GPU that this build was made for, or the processor.
    pub fn by_default() -> Self {
        [Self::Wgpu, Self::Cuda, Self::Rocm].into_iter().find(|name| name.is_built_in()).unwrap_or(Self::Cpu)
    }

    /// What there is of it; nothing where it is not built in. For `cuda` and `rocm` this opens the devices.
    pub fn adapters(self) -> Vec<Adapter> {
        match self {
            Self::Cpu => vec![Adapter {
                name: format!("{} processor(s)", std::thread::available_parallelism().map_or(1, usize::from)),
                driver: "flex".to_owned(),
                kind: "processor",
                half: Vec::new(),
            }],
            #[cfg(feature = "wgpu")]
            Self::Wgpu | Self::Vulkan | Self::Metal if self.is_built_in() => graphics::adapters(self),
            #[cfg(feature = "cuda")]
            Self::Cuda => native(burn::tensor::DeviceType::Cuda),
            #[cfg(feature = "rocm")]
            Self::Rocm => native(burn::tensor::DeviceType::Rocm),
            #[cfg(not(all(feature = "vulkan", feature = "metal", feature = "cuda", feature = "rocm")))]
            _ => Vec::new(),
            #[cfg(all(feature = "vulkan", feature = "metal", feature = "cuda", feature = "rocm"))]
            Self::Wgpu | Self::Vulkan | Self::Metal => Vec::new(),
        }
    }

    /// Opens it, without autodiff. A second time gives the same device.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open(self) -> Result<Device, DeviceError> {
        if !self.is_built_in() {
            return Err(DeviceError::NotBuiltIn(self));
        }
        match self {
            Self::Cpu => Ok(Device::flex()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu | Self::Vulkan | Self::Metal => graphics::open(self),
            #[cfg(feature = "cuda")]
            Self::Cuda => first(self, burn::tensor::DeviceType::Cuda),
            #[cfg(feature = "rocm")]
            Self::Rocm => first(self, burn::tensor::DeviceType::Rocm),
            #[cfg(not(all(feature = "wgpu", feature = "cuda", feature = "rocm")))]
            _ => Err(DeviceError::NotBuiltIn(self)),
        }
    }

    /// The number format of convolutions on `device`, which [`DeviceName::open`] gave. Of the two halves bf16 is taken where it
    /// is computed, as it has the range of f32.
    ///
    /// # Errors
    /// [`DeviceError::HalfInSoftware`] and [`DeviceError::NoHalf`].
    pub fn arithmetic(self, device: &Device, precision: Precision) -> Result<Arithmetic, DeviceError> {
        match precision {
            Precision::Full => Ok(Arithmetic::F32),
            Precision::Mixed if self == Self::Cpu => Err(DeviceError::HalfInSoftware),
            Precision::Mixed if device.supports_dtype(FloatDType::BF16) => Ok(Arithmetic::Bf16),
            Precision::Mixed if device.supports_dtype(FloatDType::F16) => Ok(Arithmetic::F16),
            Precision::Mixed => Err(DeviceError::NoHalf(self)),
        }
    }

    /// Whether a checkpoint's optimizer state can be read: Burn takes no device there but its default, and panics where that
    /// has no driver.
    ///
    /// # Errors
    /// [`DeviceError::DefaultDevice`].
    pub fn check_resume(self) -> Result<(), DeviceError> {
        // Burn's order, in which its `metal` and `vulkan` stand for `wgpu`.
        let wgpu = [Self::Metal, Self::Rocm, Self::Vulkan, Self::Wgpu];
        let default = std::iter::once(Self::Cuda).chain(wgpu).find(|name| name.is_built_in());
        let Some(default) = default else { return Ok(()) };
        let chosen = std::env::var_os("BURN_DEVICE").is_some();
        if chosen || self == default || !default.adapters().is_empty() {
            return Ok(());
        }
        let wanted = if self == Self::Cpu { "flex" } else { self.name() };
        Err(DeviceError::DefaultDevice { default, wanted })
    }

    /// What it needs.
    pub fn driver(self) -> &'static str {
        match self {
            Self::Cpu => "none is needed",
            Self::Wgpu | Self::Vulkan => {
                "install the GPU's Vulkan driver (Mesa's is mesa-vulkan-drivers in Debian, and has a software one)"
            }
            Self::Metal => "it is on Apple's systems only",
            Self::Cuda => "install NVIDIA's driver, which brings libcuda",
            Self::Rocm => "install AMD's ROCm runtime",
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|device| device.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|device| device.name()).collect();
            format!("unknown device '{text}': the devices are {}", names.join(", "))
        })
    }
}

/// The first of a vendor's own devices. Asking for the list does not need a driver.
#[cfg(any(feature = "cuda", feature = "rocm"))]
fn first(name: DeviceName, kind: burn::tensor::DeviceType) -> Result<Device, DeviceError> {
    Device::enumerate(kind).into_iter().next().ok_or(DeviceError::NoDriver(name))
}

#[cfg(any(feature = "cuda", feature = "rocm"))]
fn native(kind: burn::tensor::DeviceType) -> Vec<Adapter> {
    let adapter = |device: Device| Adapter {
        name: device.identity().map_or_else(|| "unknown".to_owned(), |identity| identity.name),
        driver: device.identity().map(|identity| identity.fingerprint).unwrap_or_default(),
        kind: "discrete",
        half: halves(&device),
    };
    Device::enumerate(kind).into_iter().map(adapter).collect()
}

#[cfg(any(feature = "cuda", feature = "rocm"))]
fn halves(device: &Device) -> Vec<&'static str> {
    let formats = [(FloatDType::BF16, "bf16"), (FloatDType::F16, "f16")];
    formats.into_iter().filter(|(format, _)| device.supports_dtype(*format)).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_it_is_written() {
        for device in DeviceName::ALL {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        let error = "gpu".parse::<DeviceName>().unwrap_err();
        assert!(error.contains("cpu, wgpu, vulkan, metal, cuda, rocm"), "{error}");
    }

    #[test]
    fn a_device_that_is_not_built_in_names_its_feature() {
        for device in DeviceName::ALL.into_iter().filter(|device| !device.is_built_in()) {
            let error = device.open().unwrap_err();
            assert_eq!(error, DeviceError::NotBuiltIn(device));
            assert!(error.to_string().contains(&format!("--features {device}")), "{error}");
            assert!(device.adapters().is_empty());
        }
    }

    #[test]
    fn the_processor_is_there_and_refuses_mixed_precision() {
        let device = DeviceName::Cpu.open().unwrap();
        assert_eq!(DeviceName::Cpu.arithmetic(&device, Precision::Full), Ok(Arithmetic::F32));
        let refused = DeviceName::Cpu.arithmetic(&device, Precision::Mixed);
        assert_eq!(refused, Err(DeviceError::HalfInSoftware));
    }
}
