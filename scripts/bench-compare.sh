#!/usr/bin/env bash
# hy2 and the reference, side by side: CPU, rate, latency, memory. Wants a quiet machine, and root for the scenario
# with a memory limit.
#   QUICK=1   a tenth of everything, to see that it works (results go to target/)
#   MATRIX=1  lossy, long and reordering links in addition (three and a half hours)
#   LANES=2   two of these links at once, in half the time
#   FORCE=1   run although the machine is busy
#   ONLY=...  scenarios whose name contains this
#   RUNS=5    counted runs of each side
#   THREADS=1 worker threads of each of our processes
#   IDLE=10000 idle connections to hold
#   OUT=...   where the results go, docs/benchmarks by default
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh
need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"

if command -v go >/dev/null 2>&1; then
    interop/build.sh
else
    echo "Go is missing: the reference cannot be built, only our own column will be there." >&2
    echo "Install Go 1.25 or newer (https://go.dev/dl/) for the comparison." >&2
fi
# Each idle connection is a socket.
ulimit -n "$(ulimit -Hn)" || true
arguments=(--runs "${RUNS:-5}")
out=docs/benchmarks
[ -z "${IDLE:-}" ] || arguments+=(--idle "$IDLE")
if [ -n "${QUICK:-}" ]; then
    arguments+=(--quick)
    out=target/bench-compare
fi
[ -z "${FORCE:-}" ] || arguments+=(--force)
[ -z "${MATRIX:-}" ] || arguments+=(--matrix)
[ -z "${THREADS:-}" ] || arguments+=(--threads "$THREADS")
[ -z "${LANES:-}" ] || arguments+=(--lanes "$LANES")
if [ -n "${ONLY:-}" ]; then
    arguments+=(--only "$ONLY")
    out=target/bench-compare
fi
# With the features of the whole workspace, so that nothing is built twice.
cargo build --release --workspace --bin hy2-compare
exec target/release/hy2-compare "${arguments[@]}" --out "${OUT:-$out}"
