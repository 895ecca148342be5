# Glimpse: `make help` lists what there is.
# Needs git, make, a C compiler, Python 3 with pip, and Rust (rustup); the rest is installed by the targets themselves.

CARGO ?= cargo
PYTHON ?= python3
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/glimpse
export GLIMPSE_PYTHON_PACKAGES := $(CACHE)/python
TARGET := $(or $(CARGO_TARGET_DIR),target)
PROGRAMS := -p glimpse-edge -p glimpse-gallery -p glimpse-tests

.DEFAULT_GOAL := help
.PHONY: help demo test lint data weights train-demo bench-accuracy python-packages clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

demo: ## recognise the demo's real photos from a simulated device, over MQTT
	$(CARGO) build --release $(PROGRAMS)
	$(TARGET)/release/glimpse-demo

test: python-packages weights ## every test: units, programs end to end, a foreign MQTT client, onnxruntime
	$(CARGO) fmt --all --check
	$(PYTHON) -m unittest discover -s tools/data -p 'test_*.py'
	$(CARGO) build --release --workspace --bins --tests
	$(CARGO) test --release --workspace --no-fail-fast

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

bench-accuracy: ## compare SSP, its rivals and ours (after `make data`; about three hours on two cores; resumes)
	$(CARGO) build --release -p glimpse-trainer
	$(TARGET)/release/glimpse-trainer compare --plan trainer/accuracy.toml --out target/reports/accuracy.json --page docs/accuracy.md

# Foreign parts that our programs are tested against: an MQTT client and an ONNX engine that are not ours.
python-packages: $(CACHE)/python/.installed
$(CACHE)/python/.installed: tests/python/requirements.txt
	@mkdir -p $(CACHE)/python
	PIP_ROOT_USER_ACTION=ignore $(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --target $(CACHE)/python -r $<
	@cp $< $@

clean: ## remove what was built (data/ and caches stay)
	$(CARGO) clean
