# Every target does its own set-up and says what it is doing. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-more soak bench instructions fmt lint servers

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

servers: ## make sure that the database servers which the tests start are installed
	@scripts/servers

SOURCE ?= postgres
demo: ## a throw-away server, a busy shop, a replicator that gets killed, a proof; SOURCE=mariadb
	@scripts/servers $(SOURCE)
	@echo "== building driftless, then showing it (about a minute after the build)"
	@cargo build --release --quiet
	@cargo run --release --quiet -- demo --source $(SOURCE)

test: servers ## everything that a change must pass: format, lints, all tests
	@scripts/test

test-more: servers ## every pair; PostgreSQL 14, 17, 18, MySQL 9.7, MariaDB 11.8; the long workload
	@scripts/test-more

soak: servers ## a full minute of a bench and the shop, killed 30 times, for every pair
	@echo "== the long workload: a minute, scale 10, 30 kills, every pair"
	@cargo build --release --quiet
	@WORKLOAD_SECONDS=60 WORKLOAD_SCALE=10 WORKLOAD_KILLS=30 \
		scripts/run-tests --release --profile soak workload

bench: servers ## measure against the databases' own replication; ARGS=--help says what to choose
	@scripts/bench $(ARGS)

instructions: ## count the instructions a row of decoding, merging and encoding
	@scripts/instructions

fmt: ## format the code
	@cargo fmt --all

lint: ## check format and lints
	@scripts/lint
