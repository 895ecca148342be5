#!/usr/bin/env bash
# What `make test-gpu` runs: the trainer's GPU tests through Burn's `wgpu` (WGSL shaders) on Mesa's software driver, which gives
# right gradients, or on the GPU whose driver VK_DRIVER_FILES names. The build is of `wgpu` alone: with `vulkan` Burn would
# compile SPIR-V, which crashes lavapipe.
set -euo pipefail
cd "$(dirname "$0")/.."

drivers() { find /usr/share/vulkan/icd.d /usr/local/share/vulkan/icd.d /etc/vulkan/icd.d -name "$1" 2>/dev/null || true; }

left_out() {
    echo "left out: test-gpu: $1" >&2
    if [ "${CI:-}" = true ]; then exit 1; else exit 0; fi
}

# macOS has Metal.
if [ "$(uname)" != Darwin ] && [ -z "${VK_DRIVER_FILES:-}" ]; then
    if [ -z "$(drivers '*.json')" ]; then
        if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
            left_out "there is no Vulkan driver: install mesa-vulkan-drivers and libvulkan1, or what your system calls them"
        fi
        echo "installing Mesa's software driver" >&2
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mesa-vulkan-drivers libvulkan1 >/dev/null
    fi
    # The software driver where it is there: the same on every machine. Any other is what the loader finds.
    lavapipe=$(drivers 'lvp_icd*.json' | head -n 1)
    if [ -n "$lavapipe" ]; then export VK_DRIVER_FILES=$lavapipe VK_ICD_FILENAMES=$lavapipe; fi
fi
if [ -z "${XDG_RUNTIME_DIR:-}" ]; then
    XDG_RUNTIME_DIR=$(mktemp -d)
    export XDG_RUNTIME_DIR
    trap 'rm -rf "$XDG_RUNTIME_DIR"' EXIT
fi

cargo=${CARGO:-cargo}
"$cargo" test --release -p glimpse-trainer --features wgpu --test gpu -- --nocapture
