#!/usr/bin/env bash
# Churns one server and many clients on loopback for as many minutes as given and says whether
# memory, tasks or descriptors are left over.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh
need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"

cargo build --release --workspace --bin hy2-soak
exec target/release/hy2-soak --minutes "${1:-60}"
