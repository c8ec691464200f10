#!/usr/bin/env bash
# Runs every check of the project; the README's second command and all of CI.
# Long matrices and anything that judges time are in scripts/bars.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh

need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"
need cc gcc "the C compiler that aws-lc needs"
need curl curl "the fleet that make starts"
need python3 python3 "the fleet that make starts"
need systemd-analyze systemd "the units' hardening"
if ! command -v go >/dev/null 2>&1; then
    echo "error: 'go' is missing. The interop tests drive the reference implementation, which is" >&2
    echo "       written in Go; install Go 1.25 or newer (https://go.dev/dl/) and run this again." >&2
    exit 1
fi

# The stores are tested on the real servers, which the tests start and stop by themselves.
need_postgres "the stores' tests"
need redis-server redis-server "the tests of the shared cache and rate limits"

step() { printf '\n== %s\n' "$*"; }

step "formatting and lints"
cargo fmt --all --check
cargo fmt --manifest-path fuzz/Cargo.toml --check
scripts/check-proof.sh
cargo clippy --workspace --all-targets --quiet -- -D warnings

step "the reference peer"
interop/build.sh
gofmt_out=$(gofmt -l interop)
[ -z "$gofmt_out" ] || { echo "gofmt: $gofmt_out" >&2; exit 1; }
(cd interop && go vet ./...)

step "tests"
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --no-fail-fast --retries 1
    cargo test --workspace --doc --quiet
else
    scripts/run_tests.py
fi

step "instructions of every part"
scripts/test-instructions.sh
# Everything is built once more for it, with all optimizations.
if [ -n "${CI:-}" ]; then
    echo "SKIPPED: counting: CI builds on a machine without a cache and has 45 minutes; make instructions counts"
else
    scripts/instructions.sh
fi

step "examples"
# Built with the whole workspace: alone they would have other features, hence other dependencies.
cargo build --workspace --examples --quiet
for example in examples/*.rs; do
    name=$(basename "$example" .rs)
    echo "-- $name"
    timeout 120 "${CARGO_TARGET_DIR:-target}/debug/examples/$name"
done

step "the corpora of the fuzz targets"
CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}" cargo test --quiet --locked --manifest-path fuzz/Cargo.toml
step "the fleet that make starts, on PostgreSQL and Redis, and what make does with it"
# Ports and folder of their own: a fleet that runs here is left alone. The programs are built.
HY2_BUILT=1 scripts/test-dev.sh

step "the commands of the documents"
HY2_BUILT=1 scripts/test-docs.sh
for unit in deployments/systemd/*.service; do
    echo "-- $unit"
    systemd-analyze security --offline=true --threshold=20 "$unit" | tail -n 1
done

step "packages"
scripts/check-packages.sh

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

echo
echo "All checks passed."
