//! The devices behind wgpu: which adapters there are, and how one is opened.

use burn::tensor::wgpu::{WgpuBackend, WgpuInitError, wgpu};
use burn::tensor::{Device, DeviceKind, read_sync};

use super::{Adapter, DeviceError, DeviceName};

pub(super) fn adapters(name: DeviceName) -> Vec<Adapter> {
    let backends = match name {
        DeviceName::Vulkan => wgpu::Backends::VULKAN,
        DeviceName::Metal => wgpu::Backends::METAL,
        _ => wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12 | wgpu::Backends::GL,
    };
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let adapters = read_sync(instance.enumerate_adapters(backends));
    adapters.iter().map(adapter).collect()
}

fn adapter(adapter: &wgpu::Adapter) -> Adapter {
    let info = adapter.get_info();
    let half = adapter.features().contains(wgpu::Features::SHADER_F16);
    Adapter {
        driver: format!("{} {} {}", info.backend, info.driver, info.driver_info).trim().to_owned(),
        name: info.name,
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => SOFTWARE,
            wgpu::DeviceType::Other => "unknown",
        },
        half: if half { vec!["f16"] } else { Vec::new() },
    }
}

const SOFTWARE: &str = "software";

pub(super) fn open(name: DeviceName) -> Result<Device, DeviceError> {
    // A build with `vulkan` takes SPIR-V on any Vulkan adapter.
    if cfg!(feature = "vulkan") && name != DeviceName::Metal {
        let adapters = adapters(name);
        if !adapters.is_empty() && adapters.iter().all(|adapter| adapter.kind == SOFTWARE) {
            return Err(DeviceError::SoftwareDriver);
        }
    }
    let api = match name {
        DeviceName::Vulkan => WgpuBackend::Vulkan,
        DeviceName::Metal => WgpuBackend::Metal,
        _ => WgpuBackend::Auto,
    };
    match Device::wgpu_options().graphics_api(api).init() {
        Ok(device) => Ok(device),
        // It was opened before in this process.
        Err(WgpuInitError::Registration { .. }) => Ok(opened(name)),
        Err(WgpuInitError::AdapterUnavailable { .. } | WgpuInitError::UnsupportedGraphicsApi { .. }) => {
            Err(DeviceError::NoDriver(name))
        }
        Err(error) => Err(DeviceError::Refused { device: name, reason: error.to_string() }),
    }
}

fn opened(name: DeviceName) -> Device {
    match name {
        #[cfg(feature = "vulkan")]
        DeviceName::Vulkan => Device::vulkan(DeviceKind::DefaultDevice),
        #[cfg(feature = "metal")]
        DeviceName::Metal => Device::metal(DeviceKind::DefaultDevice),
        _ => Device::wgpu(DeviceKind::DefaultDevice),
    }
}
