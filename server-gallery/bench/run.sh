#!/usr/bin/env bash
# What `make bench-search` runs: our search beside Faiss's, one thread each, turn by turn, on vectors that the seed draws and on
# the gallery features of the demo where `make train-demo` has left them. Each call adds its rows to the report.
#
#   run.sh PROGRAM REPORT [SEED]
set -euo pipefail
program=$1 report=$2 seed=${3:-1}
here=$(dirname "$0")
python=${PYTHON:-python3}

# Each side on a core of its own, where the system can say so and there are two.
ours=() theirs=
if command -v taskset >/dev/null && [ "$(nproc)" -ge 2 ]; then
    ours=(taskset -c 0) theirs="taskset -c 1 "
fi
bench() {
    "${ours[@]}" "$program" bench --seed "$seed" --out "$report" --peer "$theirs$python $here/faiss_peer.py" "$@"
}

for rows in 10000 100000; do
    bench --rows $rows --index PQ32x4fs --index PQ32x4fs+SQ8
done
bench --rows 1000000 --train 32x4 --train 16x8 --index PQ32x4fs --index PQ32x4fs+SQ8 --index PQ16 \
    --index IVF1024,PQ32x4fs+SQ8 --probes 16,64
bench --rows 5000000 --queries 300 --rounds 3 --index PQ32x4fs --index PQ32x4fs+SQ8
bench --rows 200000 --dimension 512 --train 128x4 --index PQ128x4fs --index PQ128x4fs+SQ8 --index PQ64 \
    --index IVF512,PQ128x4fs+SQ8 --probes 16,64
bench --rows 200000 --dimension 2048 --queries 500 --index PQ256x4fs --index PQ256x4fs+SQ8

# Features of real photos, made by the demo's gallery network: 32-bit floats after a safetensors header.
features=$here/../../runs/demo/embeddings.safetensors
if [ -f "$features" ]; then
    raw=$(mktemp)
    trap 'rm -f "$raw"' EXIT
    dimension=$("$python" "$here/raw_features.py" "$features" "$raw")
    bench --features "$raw" --dataset "demo photos" --dimension "$dimension" --queries 1000 --train "$((dimension / 4))x4" \
        --index "PQ$((dimension / 4))x4fs" --index "PQ$((dimension / 4))x4fs+SQ8" --index "PQ$((dimension / 8))"
else
    echo "left out: the features of the demo's photos, which \`make data train-demo\` makes" >&2
fi
