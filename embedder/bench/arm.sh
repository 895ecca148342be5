#!/usr/bin/env bash
# Executed instructions of one inference on emulated 64-bit ARM: ours, the engine as it comes, and ONNX Runtime, in f32 and int8.
# Three inferences less one, halved, so that loading does not count. Instructions are not time.
#
# Usage: arm.sh CACHE; prints JSON, or exits with 3 and the reason where there is no toolchain.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=$1
version=1.32.0
toolchain=$(tools/arm/toolchain.sh) || { echo "bench-embed: no ARM: $toolchain" >&2; exit 3; }

# Plugins are left out of the emulator of Debian 13; that of Debian 12 has them.
emulator="$cache/qemu"
if [ ! -x "$emulator/usr/bin/qemu-aarch64" ]; then
    mkdir -p "$emulator"
    (cd "$emulator" && apt-get download -qq qemu-user/bookworm libcapstone4/bookworm >&2) ||
        { echo "bench-embed: no ARM: apt has no qemu-user of Debian 12" >&2; exit 3; }
    for package in "$emulator"/*.deb; do dpkg-deb -x "$package" "$emulator"; done
fi
cc -shared -fPIC -O2 -o "$cache/count.so" embedder/bench/count.c

if [ ! -e "$cache/aarch64/.done-$version" ]; then
    PIP_ROOT_USER_ACTION=ignore "${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --platform manylinux_2_28_aarch64 --python-version 3.12 --dest "$cache/aarch64" "onnxruntime==$version" >&2
    "${PYTHON:-python3}" -m zipfile -e "$cache/aarch64/"onnxruntime-$version-*.whl "$cache/aarch64/unpacked"
    touch "$cache/aarch64/.done-$version"
fi
library="$cache/aarch64/unpacked/onnxruntime/capi/libonnxruntime.so.$version"

tools/arm/cargo.sh build --release -p glimpse-embedder --features onnxruntime --example bench_embed >&2
program="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse/target-arm/aarch64-unknown-linux-gnu/release/examples/bench_embed"

# ONNX Runtime asks the system for the processor, and gives up where it finds nothing.
root="$cache/root"
mkdir -p "$root"
for part in "$toolchain"/*; do ln -sfn "$part" "$root/$(basename "$part")"; done
mkdir -p "$root/proc" "$root/sys/devices/system/cpu"
printf 'processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n\n' >"$root/proc/cpuinfo"
echo 0 | tee "$root/sys/devices/system/cpu/"{possible,present,online} >/dev/null

count() { # CPU ENGINE MODEL TIMES
    local log
    log=$(LD_LIBRARY_PATH="$emulator/usr/lib/x86_64-linux-gnu" "$emulator/usr/bin/qemu-aarch64" -cpu "$1" -L "$root" \
        -plugin "$cache/count.so" -d plugin "$program" infer --engine "$2" --model "$3" --times "$4" \
        --onnxruntime "$library" 2>&1) || { echo "$log" >&2; exit 1; }
    sed -n 's/.*instructions: //p' <<<"$log"
}

declare -A counts
# A network without int8 form, where there is one.
mobilenet="$cache/mobilenet-v2/raw.onnx"
for cpu in cortex-a72 cortex-a53 cortex-a76; do
    for form in f32 int8 mobilenet; do
        case $form in
        f32) model=models/demo/query.onnx ;;
        int8) model=models/demo/query-int8.onnx ;;
        mobilenet) model=$mobilenet ;;
        esac
        [ -e "$model" ] || continue
        for engine in ours tract onnxruntime; do
            # What the engine makes of int8 without us is known, and slow.
            [ "$form $engine" != "int8 tract" ] || [ $cpu = cortex-a72 ] || continue
            one=$(count $cpu $engine $model 1)
            three=$(count $cpu $engine $model 3)
            counts[$cpu,$form,$engine]=$(((three - one) / 2))
            echo "bench-embed: $cpu $form $engine: ${counts[$cpu,$form,$engine]} instructions" >&2
        done
    done
done

"${PYTHON:-python3}" - <<PYTHON
import json
counts = dict(line.split() for line in """$(for key in "${!counts[@]}"; do echo "$key ${counts[$key]}"; done)""".splitlines())
counts = {key: int(count) for key, count in counts.items()}
ratio = lambda a, b: counts[a] / counts[b] if a in counts and b in counts else None
print(json.dumps({
    "instructions": counts,
    "arm_f32_instructions_ratio": ratio("cortex-a72,f32,ours", "cortex-a72,f32,onnxruntime"),
    "arm_a53_f32_instructions_ratio": ratio("cortex-a53,f32,ours", "cortex-a53,f32,onnxruntime"),
    "arm_mobilenet_v2_f32_instructions_ratio": ratio("cortex-a72,mobilenet,ours", "cortex-a72,mobilenet,onnxruntime"),
    "arm_a53_mobilenet_v2_f32_instructions_ratio": ratio("cortex-a53,mobilenet,ours", "cortex-a53,mobilenet,onnxruntime"),
    "arm_int8_over_f32": ratio("cortex-a72,int8,ours", "cortex-a72,f32,ours"),
    "arm_dot_int8_over_f32": ratio("cortex-a76,int8,ours", "cortex-a76,f32,ours"),
    "arm_int8_instructions_ratio": ratio("cortex-a72,int8,ours", "cortex-a72,int8,onnxruntime"),
    "arm_dot_int8_instructions_ratio": ratio("cortex-a76,int8,ours", "cortex-a76,int8,onnxruntime"),
}))
PYTHON
