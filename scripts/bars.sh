#!/usr/bin/env bash
# The long matrices and the paired speed runs. Wants a quiet machine; prints its figures as it goes.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh
need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"
need go golang "the reference implementation, the other side of every ratio"

echo "== congestion control, every cell, virtual time"
HY2_FULL_MATRIX=1 cargo test -p hy2-core --test congestion -- --nocapture --test-threads=2
echo "== whole stack, full length and rate, virtual time"
HY2_FULL_MATRIX=1 cargo test -p hy2-core --test simulation -- --nocapture --test-threads=2
echo "== hostile peers at full size, with their timing bars"
HY2_FULL=1 cargo test -p hy2-core --test hostile -- --nocapture
echo "== Brutal's rate and small writes on real sockets"
HY2_FULL=1 cargo test -p hy2-core --test real_link -- --nocapture
echo "== speed and memory, paired with the reference"
interop/build.sh
cargo run --release -p hy2-benches --bin hy2-compare -- --runs 5 --bars
