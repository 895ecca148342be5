#!/usr/bin/env bash
# What `make bench-embed` runs: our embedder beside ONNX Runtime, in time on this machine and, where there is a toolchain for it,
# in executed instructions on emulated ARM. Writes one JSON report.
#
# Usage: run.sh PROGRAM CACHE REPORT
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$1 cache=$2 report=$3
mkdir -p "$cache" "$(dirname "$report")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python=${PYTHON:-python3}
# The version that the report names, as its wheel has it.
version=1.32.0
fetch() { # platform, folder
    [ -e "$cache/$2/.done-$version" ] && return
    PIP_ROOT_USER_ACTION=ignore "$python" -m pip download --quiet --disable-pip-version-check --no-deps \
        --only-binary=:all: --platform "$1" --python-version 3.12 --dest "$cache/$2" "onnxruntime==$version"
    "$python" -m zipfile -e "$cache/$2/"onnxruntime-$version-*.whl "$cache/$2/unpacked"
    touch "$cache/$2/.done-$version"
}
case $(uname -m) in
x86_64) fetch manylinux_2_28_x86_64 x86_64 ;;
*) echo "bench-embed compares on x86-64, and this is $(uname -m)" >&2 && exit 1 ;;
esac
library="$cache/x86_64/unpacked/onnxruntime/capi/libonnxruntime.so.$version"

"$program" photos --from demo/photos/queries --out "$work"
"$program" speed --f32 models/demo/query.onnx --int8 models/demo/query-int8.onnx --onnxruntime "$library" \
    --photo "$work/camera.jpg" --large "$work/large.jpg" --photos demo/photos/queries --turns "${TURNS:-60}" >"$work/speed.json"

arm='{"skipped": "no toolchain for aarch64"}'
if counts=$(embedder/bench/arm.sh "$cache"); then arm=$counts; fi
"$python" - "$work/speed.json" "$report" <<PYTHON
import json, sys
report = json.load(open(sys.argv[1]))
report["onnxruntime"] = "$version"
report["arm"] = json.loads("""$arm""")
json.dump(report, open(sys.argv[2], "w"), indent=1)
print(json.dumps(report, indent=1))
PYTHON
