#!/usr/bin/env bash
# Makes models/demo from the photos and pretrained weights in data/ (`make data`): gallery model, codebook and query
# network, in about a quarter of an hour on two cores. Stopped at any point, it goes on where it was when started again; models/demo
# changes at the very end, all at once.
set -euo pipefail
cd "$(dirname "$0")/.."

trainer="${CARGO_TARGET_DIR:-target}/release/glimpse-trainer"
run="${GLIMPSE_RUN:-runs/demo}"
models="${GLIMPSE_MODELS:-models/demo}"
bundle="$run/bundle"
views=2
mkdir -p "$bundle"
log="$run/train.log"
stages="$run/stages"

# Runs one stage, and notes its seconds (not where it only looked into a cache).
stage() {
    local name=$1 start=$SECONDS
    shift
    echo "+ glimpse-trainer $*" >>"$log"
    "$trainer" "$@" 2> >(tee -a "$log" >&2)
    if [ $((SECONDS - start)) -gt 1 ]; then echo "$name: $((SECONDS - start)) s" >>"$stages"; fi
}

# Two networks joined, the query network's own backbone among them, which look at each photo at 160 and at 224 px and pool the
# middle of what they see. 224 dimensions keep the bundle under 50 MB.
gallery=(--network efficientnet-lite2 --weights data/weights/efficientnet-lite2.pth
    --network efficientnet-lite0 --weights data/weights/efficientnet-lite0.pth --member-weights 0.5,1
    --size 256 --scales 0.625,0.875 --margin 2)
stage "gallery network" import "${gallery[@]}" --out "$run/raw.onnx"
stage "raw features" features --model "$run/raw.onnx" --photos data/scenes/train.csv --views $views \
    --out "$run/raw.safetensors"
stage "whitening" import "${gallery[@]}" --out "$bundle/gallery.onnx" --name demo \
    --whiten "$run/raw.safetensors" --dimension 224 --embeddings "$run/embeddings.safetensors"
stage "quantizer" quantizer --features "$run/embeddings.safetensors" --bundle "$bundle" \
    --sub-spaces 28 --centroids 256 --seed 1
resume=()
if [ -e "$run/checkpoint.safetensors" ]; then resume=(--resume); fi
# The closed form does nearly all of it; small steps from there (docs/accuracy.md has what was tried).
stage "training" train --bundle "$bundle" --network efficientnet-lite0 \
    --weights data/weights/efficientnet-lite0.pth --size 224 --margin 2 --photos data/scenes/train.csv \
    --val data/scenes/val.csv --views $views --embeddings "$run/embeddings.safetensors" --run "$run" \
    --ridge 1,3,10,30 --loss ours --steps 300 --warm-up 15 --lr 1e-4 --seed 1 "${resume[@]}"
stage "export" export --run "$run" --bundle "$bundle"

{
    echo "# How this space was trained"
    echo
    echo "By \`make data\` and \`make train-demo\`, on $(nproc) cores. The settings:"
    echo
    echo '```toml'
    cat "$run/run.toml"
    echo '```'
    echo
    echo "Validation (objects and scenes that training did not see; composed of real photographs; the ridge and the"
    echo "epoch were chosen on it, so that it flatters a little):"
    echo
    "$trainer" eval --bundle "$bundle" --photos data/scenes/val.csv --cache "$run/cache/eval"
    echo
    echo "Time of each stage:"
    echo
    sed 's/^/- /' "$stages"
    echo
    echo "The commands and their log, without the progress lines:"
    echo
    echo '```text'
    # Whoever reads it wants no terminal's colours.
    sed 's/\x1b\[[0-9;]*m//g' "$log" | grep -E '^\+| (INFO|WARN|ERROR) ' | grep -vE 'of [0-9]+ after [0-9]+ s$'
    echo '```'
} >"$run/TRAINING.md"
mkdir -p "$models"
for file in space.toml codebook.safetensors gallery.onnx query.onnx; do cp "$bundle/$file" "$models/$file.new"; done
for file in space.toml codebook.safetensors gallery.onnx query.onnx; do mv "$models/$file.new" "$models/$file"; done
cp "$run/TRAINING.md" "$models/TRAINING.md"
cat "$models/TRAINING.md"
