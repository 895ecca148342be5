# Glimpse: `make help` lists what there is.
# Needs git, make, a C compiler, Python 3 with pip, and Rust (rustup); the rest is installed by the targets themselves.

CARGO ?= cargo
PYTHON ?= python3
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/glimpse
export GLIMPSE_PYTHON_PACKAGES := $(CACHE)/python
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Burn's GPU crates are built again for each set of features, so each has a folder of its own.
GPU ?= cuda
# Of the vectors that `bench-search` draws.
SEED ?= 1
# That each target of `fuzz` takes.
SECONDS ?= 60
# That `soak` takes.
MINUTES ?= 30
# Plugs that `demo-device` pulls.
PULLS ?= 20
GPU_TARGET ?= $(CACHE)/target-gpu
PROGRAMS := -p glimpse-edge -p glimpse-gallery -p glimpse-tests

.DEFAULT_GOAL := help
.PHONY: help demo demo-device test test-arm test-arm-embedder test-machine test-image edge-arm microcontroller test-gpu fuzz lint data weights train-demo bench-accuracy bench-search bench-server bench-embed bench-edge bench-flash soak bench-gpu python-packages browser mosquitto clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

demo: ## recognise the demo's real photos from a simulated device, over MQTT
	$(CARGO) build --release $(PROGRAMS)
	CARGO_MANIFEST_DIR=$(CURDIR)/tests $(TARGET)/release/glimpse-demo

test: python-packages weights browser mosquitto microcontroller ## every test: units, programs end to end, a foreign MQTT client, onnxruntime
	$(CARGO) fmt --all --check
	$(PYTHON) -m unittest discover -s tools/data -p 'test_*.py'
	$(PYTHON) -m unittest discover -s tools/arm -p 'test_*.py'
	$(CARGO) build --release --workspace --bins --tests
	$(CARGO) test --release --workspace --no-fail-fast
	$(MAKE) --no-print-directory test-arm

test-arm: ## the tests of quantizer and kernels for 64-bit ARM (what is written for NEON) in an emulator, fetched by apt and installed nowhere
	CARGO="$(CARGO)" PYTHON=$(PYTHON) tools/arm/test.sh

# With the feature, for `bench-embed` has it: then the engine is built once for both.
test-arm-embedder: ## the embedder's own tests there too: its operators against the engine's (half an hour to build the first time)
	CARGO="$(CARGO)" PYTHON=$(PYTHON) tools/arm/cargo.sh test --release -p glimpse-embedder --features onnxruntime --lib --tests

test-machine: ## camera and button of an emulated board (after `make edge-arm`; fetches Debian's kernel and qemu, 130 MB, installed nowhere)
	$(CARGO) build --release -p glimpse-edge -p glimpse-gallery
	$(CARGO) test --release -p glimpse-tests --test emulated_machine -- --nocapture

test-image: ## an image for a card, built twice and started in an emulator (fetches 170 MB of Debian's packages, installed nowhere)
	GLIMPSE_IMAGE=1 $(CARGO) test --release -p glimpse-firmware --test image -- --nocapture --test-threads=1

edge-arm: ## glimpse-edge for aarch64 and armv7 and a Debian package of each, into target/edge (an hour to build the first time)
	CARGO="$(CARGO)" PYTHON=$(PYTHON) tools/arm/edge.sh target/edge

# The program of `tests/tests/microcontroller.rs`, with its emulator.
microcontroller: ## glimpse-mcu for a Cortex-M4F, into target/edge, and the emulator of a board (five minutes the first time, beside other work)
	CARGO="$(CARGO)" PYTHON=$(PYTHON) tools/arm/mcu.sh target/edge || { test $$? = 3 && test "$$CI" != true; }

test-gpu: ## train on a GPU, or on Mesa's software driver, and hold its gradients against the processor's (20 minutes to build)
	CARGO_TARGET_DIR=$(GPU_TARGET) CARGO="$(CARGO)" trainer/test-gpu.sh

fuzz: $(CACHE)/cargo-fuzz/bin/cargo-fuzz ## damaged files, messages and configurations against their readers, each for a minute (SECONDS=60)
	tools/fuzz.sh $(SECONDS)

$(CACHE)/cargo-fuzz/bin/cargo-fuzz:
	$(CARGO) install --quiet --locked --root $(CACHE)/cargo-fuzz cargo-fuzz@0.13.1

lint: ## clippy on everything
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

data: ## fetch the photos and pretrained weights into data/ (for training; the demo needs none of it)
	$(PYTHON) tools/data/fetch.py
	$(PYTHON) tools/data/scenes.py

weights: ## fetch the pretrained weights alone (50 MB)
	$(PYTHON) tools/data/fetch.py --only weights

train-demo: ## train the space of models/demo again from the pretrained weights (a quarter of an hour and the build; resumes)
	$(CARGO) build --release -p glimpse-trainer
	trainer/train-demo.sh

bench-accuracy: ## compare SSP, its rivals and ours (after `make data`; about an hour on two cores; resumes)
	$(CARGO) build --release -p glimpse-trainer
	$(TARGET)/release/glimpse-trainer compare --plan trainer/accuracy.toml --out target/reports/accuracy.json --page docs/accuracy.md

bench-search: $(CACHE)/faiss/.installed ## search speed and recall beside Faiss, into target/reports/search.json and docs/performance.md (a quarter of an hour; SEED=1)
	$(CARGO) build --release --workspace --bins
	PYTHON=$(PYTHON) PYTHONPATH=$(CACHE)/faiss server-gallery/bench/run.sh $(TARGET)/release/glimpse-gallery target/reports/search.json $(SEED)
	$(PYTHON) server-gallery/bench/report.py target/reports/search.json docs

bench-server: ## the server under load from a thousand devices, and 200 kills, into target/reports/server.json (five minutes, and ten the first time)
	$(CARGO) build --release --workspace --bins
	$(TARGET)/release/glimpse-load --cache $(CACHE)/bench-server --out target/reports/server.json

bench-embed: weights ## the embedder beside ONNX Runtime, on this machine and on emulated ARM, into target/reports/embed.json (15 minutes, and half an hour to build the first time)
	$(CARGO) build --release --workspace --bins
	$(CARGO) build --release --workspace --example bench_embed
	$(TARGET)/release/glimpse-trainer import --network mobilenet-v2 --weights data/weights/mobilenetv2.pt --size 224 \
		--out $(CACHE)/bench-embed/mobilenet-v2/raw.onnx
	PYTHON=$(PYTHON) CARGO="$(CARGO)" embedder/bench/run.sh $(TARGET)/release/examples/bench_embed $(CACHE)/bench-embed target/reports/embed.json

bench-edge: weights ## what a device takes, and five hundred pulled plugs, into target/reports/edge.json (five minutes; ARM too after `make edge-arm`)
	$(CARGO) build --release --workspace --bins
	$(TARGET)/release/glimpse-edge-bench --out target/reports/edge.json

bench-flash: ## the speed of flashing beside dd, on a file of 1 GiB, into target/reports/flash.json (a minute or two)
	$(CARGO) build --release --workspace --bins
	$(PYTHON) firmware-config/bench/flash.py $(TARGET)/release/glimpse-firmware --out target/reports/flash.json

demo-device: browser ## an image, flashed to a file and started in an emulator, asks about what its camera sees (after `make edge-arm`; PULLS=20)
	$(CARGO) build --release $(PROGRAMS) -p glimpse-firmware
	CARGO_MANIFEST_DIR=$(CURDIR)/tests $(TARGET)/release/glimpse-demo-device --pulls $(PULLS)

soak: mosquitto ## servers and brokers through half an hour of load, restarts and bad manners, into target/reports/soak.json (MINUTES=30)
	$(CARGO) build --release --workspace --bins
	$(TARGET)/release/glimpse-soak --minutes $(MINUTES)

# The peer of `bench-search`.
$(CACHE)/faiss/.installed: server-gallery/bench/requirements.txt
	@mkdir -p $(CACHE)/faiss
	PIP_ROOT_USER_ACTION=ignore $(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --target $(CACHE)/faiss -r $<
	@cp $< $@

bench-gpu: $(CACHE)/torch/.installed ## photos a second on a GPU beside PyTorch's, into target/reports/gpu.json (GPU=cuda, rocm, vulkan, metal or wgpu)
	CARGO_TARGET_DIR=$(GPU_TARGET)-$(GPU) $(CARGO) build --release -p glimpse-trainer --features $(GPU),tuned
	PYTHON=$(PYTHON) PYTHONPATH=$(CACHE)/torch $(GPU_TARGET)-$(GPU)/release/glimpse-trainer bench --device $(GPU) --all-networks \
		--size 224,512 --precision full,mixed --batch 32 --warm-up 5 --batches 20 --peer trainer/tests/python/speed.py \
		--out target/reports/gpu.json

# The wheels are of NVIDIA's CUDA; for another GPU install its PyTorch there first.
$(CACHE)/torch/.installed: trainer/tests/python/torch.txt
	@mkdir -p $(CACHE)/torch
	PIP_ROOT_USER_ACTION=ignore $(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --target $(CACHE)/torch -r $<
	@cp $< $@

# Foreign parts that our programs are tested against: an MQTT client and an ONNX engine that are not ours.
python-packages: $(CACHE)/python/.installed
$(CACHE)/python/.installed: tests/python/requirements.txt
	@mkdir -p $(CACHE)/python
	PIP_ROOT_USER_ACTION=ignore $(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --target $(CACHE)/python -r $<
	@cp $< $@

# A headless browser with its driver, for the tests of the console; it says why where it cannot be had, and they are left out.
browser: ## fetch what tests the console in a browser (nothing is installed)
	PYTHON=$(PYTHON) tools/browser/fetch.sh || { test $$? = 3 && test "$$CI" != true; }

# The broker that is not ours.
mosquitto: ## fetch what tests the server with another broker (nothing is installed)
	tools/mosquitto/fetch.sh || { test $$? = 3 && test "$$CI" != true; }

clean: ## remove what was built (data/ and caches stay)
	$(CARGO) clean
