#!/usr/bin/env bash
# The long matrices and the paired speed runs. Wants a quiet machine, and root for the scenario with a memory limit, whose
# bar is not met where it cannot run; prints its figures as it goes.
#   MATRIX=1  lossy, long and reordering links between processes in addition (three and a half hours)
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
echo "== the control plane: ingest, lists and searches, memory of a steady fleet"
need_postgres "ingest and lists on PostgreSQL"
cargo build --release -p hy2-orchestrator
missed=()
for bench in ingest users steady; do
    HY2_BARS=1 cargo bench -p hy2-master-sdk --bench "$bench" || missed+=("$bench")
done
echo "== heartbeats, counted in the database"
cargo test -p hy2-master-sdk --test fleet heartbeats_run_no_statement
echo "== speed and memory, paired with the reference"
interop/build.sh
# Each idle connection is a socket.
ulimit -n "$(ulimit -Hn)" || true
cargo run --release -p hy2-benches --bin hy2-compare -- --runs 5 --bars --out target/bars ${MATRIX:+--matrix}
echo "== instructions, against the committed figures"
scripts/instructions.sh

if [ "${#missed[@]}" -gt 0 ]; then
    echo "error: bars of the control plane not met: ${missed[*]}" >&2
    exit 1
fi
