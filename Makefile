# The commands that developers and CI run. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /usr/bin/env bash
CARGO ?= cargo

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.PHONY: run
run: ## Build, start a server and a client, carry traffic, show the figures, leave the pair running
	@scripts/run.sh

.PHONY: stop
stop: ## Stop the pair that `make run` left running
	@scripts/run.sh stop

.PHONY: test
test: ## Run everything: formatting, lints, unit, property, end-to-end, hostile, interop, examples
	@scripts/test.sh

.PHONY: test-unit
test-unit: ## The quick part: unit tests of every crate
	$(CARGO) test --workspace --lib --bins

.PHONY: test-all
test-all: test fuzz-replay ## Everything that a change has to pass, the fuzz corpus included

.PHONY: check
check: ## Formatting and lints only
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

# Per target.
SECONDS ?= 60
# All of them when empty.
TARGETS ?=

.PHONY: fuzz
fuzz: ## Fuzz every target for SECONDS=60 each (installs cargo-fuzz when missing)
	@scripts/fuzz.sh $(SECONDS) $(TARGETS)

.PHONY: bench
bench: ## Time every part on its own (criterion; no network)
	$(CARGO) bench -p hy2-microbenches -p hy2-fleet-benches

.PHONY: instructions
instructions: ## Count the instructions of every part under callgrind, against the committed figures
	@scripts/instructions.sh

# QUICK=1: a tenth of it. MATRIX=1: lossy links too. FORCE=1: on a busy machine. ONLY=name: some.
.PHONY: bench-compare
bench-compare: ## hy2 and the reference side by side; writes docs/benchmarks/
	@scripts/bench-compare.sh

MINUTES ?= 60

.PHONY: soak
soak: ## Churn for MINUTES=60 and judge memory, tasks and descriptors
	@scripts/soak.sh $(MINUTES)

.PHONY: bars
bars: ## The long matrices and paired speed runs (an hour; quiet machine)
	@scripts/bars.sh

.PHONY: chaos
chaos: ## Faults, changes and an outage of a real fleet, at full length (an hour; HY2_SEED repeats a run)
	@scripts/chaos.sh

.PHONY: deny
deny: ## Check licences, banned crates and sources (installs cargo-deny when missing)
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked --debug cargo-deny
	$(CARGO) deny --offline check bans licenses sources

.PHONY: package
package: ## Build every crate from its packed archive
	@# cargo takes packages of one version for the same: what it unpacked and built of them in an earlier run goes first.
	rm -rf "$${CARGO_HOME:-$$HOME/.cargo}"/registry/src/-*/hy2-* target/packages/debug/.fingerprint/hy2*
	$(CARGO) package --workspace --allow-dirty --target-dir target/packages

.PHONY: doc
doc: ## Build the documentation, warnings are errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

.PHONY: peer
peer: ## Build the reference implementation's test peer (needs Go)
	@interop/build.sh

.PHONY: proto
proto: ## Generate the gRPC code from hy2-proto/proto
	@scripts/generate-proto.sh

.PHONY: dev-start
dev-start: ## Build and start a fleet of three nodes here, carry traffic, show what was counted
	@scripts/dev-start.sh

.PHONY: dev-full
dev-full: ## The same on PostgreSQL and Redis (installed when missing and root)
	@scripts/dev-start.sh full

.PHONY: dev-stop
dev-stop: ## Stop the fleet that `make dev-start` or `make dev-full` left running, and remove its files
	@scripts/dev-start.sh stop

.PHONY: dev-setup
dev-setup: ## Install what building, testing and the fleet need, and fetch the dependencies
	@scripts/dev-setup.sh

.PHONY: health
health: ## Ask every part of the running fleet how it is
	@scripts/dev-fleet.sh health

.PHONY: logs-all
logs-all: ## Last TAIL=40 lines of every log of the running fleet; FOLLOW=1 goes on
	@scripts/dev-fleet.sh logs

.PHONY: logs-orchestrator
logs-orchestrator: ## The same of the orchestrator
	@scripts/dev-fleet.sh logs orchestrator

.PHONY: logs-agents
logs-agents: ## The same of the agents
	@scripts/dev-fleet.sh logs agent-

# Kept by dev-stop.
BACKUP ?=

.PHONY: db-migrate
db-migrate: ## Bring the running fleet's database to this build's schema
	@scripts/dev-fleet.sh migrate

.PHONY: db-backup
db-backup: ## Encrypted backup of the running fleet's database to BACKUP=file
	@scripts/dev-fleet.sh backup $(or $(BACKUP),$${CARGO_TARGET_DIR:-target}/backups/hy2-$$(date +%Y%m%d-%H%M%S).backup)

.PHONY: db-restore
db-restore: ## Put the running fleet back to BACKUP=file
	@scripts/dev-fleet.sh restore $(BACKUP)

COUNT ?=

.PHONY: scale-agents
scale-agents: ## Add or remove agents of the running fleet until there are COUNT
	@scripts/dev-fleet.sh scale $(COUNT)

.PHONY: clean
clean: ## Stop the fleet and remove everything built
	@scripts/dev-start.sh stop
	$(CARGO) clean

.PHONY: fuzz-replay
fuzz-replay: ## Run every fuzz target over its committed corpus, without a fuzzer
	CARGO_TARGET_DIR=$${CARGO_TARGET_DIR:-$(CURDIR)/target} $(CARGO) test --quiet --locked --manifest-path fuzz/Cargo.toml
