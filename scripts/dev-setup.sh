#!/usr/bin/env bash
# Installs what building, testing and the development fleet need (as root; named otherwise), and
# fetches the dependencies, so that what follows works without a network.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh

need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"
need cc gcc "the C compiler that aws-lc and SQLite need"
need curl curl "to talk to the orchestrator"
need python3 python3 "a small web server as the origin, and to read JSON"
need_postgres "the stores' tests and make dev-full"
need redis-server redis-server "the tests of the cache and make dev-full"
cargo fetch --locked
# Only the interop tests need it, and Debian's is too old.
if command -v go >/dev/null 2>&1; then
    (cd interop && go mod download)
else
    echo "note: 'go' is missing: make test needs Go 1.25 or newer (https://go.dev/dl/)" >&2
fi
echo "Ready: make dev-start, make test."
