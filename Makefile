# Needs stable Rust, make, and python3 with pip; nothing else. `make demo` and `make test` are all there is to know.

# Text to train on: files and folders, as in `make demo DATA="book.txt notes/"`.
DATA ?= $(wildcard *.md) docs src crates passes xtask models/README.md models/export
STEPS ?= 250
SEED ?= 0

.PHONY: demo demos evidence test test-python test-ops build plugin bench models models-check clean

# Fetches the CPU plugin, builds, and trains the small GPT under the default policy.
demo: build
	target/release/entropic plugin fetch cpu
	target/release/entropic train models/gpt-nano --data $(DATA) --steps $(STEPS) --seed $(SEED)

# Formatting, lints, all tests, doc tests. Needs no JAX.
test:
	cargo xtask test

# The checks that need JAX: installs it into .venv first.
test-python:
	cargo xtask test-python

# A Prometheus server scrapes a run, a browser shows a report, and runs are killed and go on. Needs `prometheus`, `promtool` and
# `chromium` (Debian: prometheus, chromium).
test-ops: plugin
	cargo xtask test-ops

build:
	cargo build --release

# Fetches the CPU plugin into the user's cache, or into ENTROPIC_PLUGIN_DIR.
plugin:
	cargo run --quiet -- plugin fetch cpu

# What control costs, against JAX and PyTorch too: installs both into .venv (6 GB), measures for about ten minutes on two
# quiet cores, longer where there is a GPU, and writes the tables of docs/performance.md.
bench: plugin
	cargo xtask bench

# Runs the experiments of docs/demos.md and writes their tables and plots: most of an hour.
demos:
	cargo xtask demos

# Does the training runs of docs/evidence.md and writes its tables: under two hours on two cores. Stopped and started
# again, it goes on. `FULL=1` does those of other sizes, of variants of spectral, of fewer corrupted batches, and of each
# kind of corruption by itself, too.
evidence: plugin
	cargo xtask evidence $(if $(FULL),--full)

# Exports the committed bundles again; `models-check` only says whether they still match.
models:
	cargo xtask models

models-check:
	cargo xtask models --check

clean:
	cargo clean
	rm -rf .venv runs
