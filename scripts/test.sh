#!/usr/bin/env bash
# Runs every check of the project; the README's second command and all of CI.
# Long matrices and anything that judges time are in scripts/bars.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh

need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"
need cc gcc "the C compiler that aws-lc needs"
if ! command -v go >/dev/null 2>&1; then
    echo "error: 'go' is missing. The interop tests drive the reference implementation, which is" >&2
    echo "       written in Go; install Go 1.25 or newer (https://go.dev/dl/) and run this again." >&2
    exit 1
fi

# The stores are tested on the real PostgreSQL, which the tests start and stop by themselves.
if ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "Installing postgresql (the stores' tests) ..." >&2
        apt-get update -qq >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >&2
    else
        echo "error: PostgreSQL is missing (the stores' tests). Install the package 'postgresql' and run this again." >&2
        exit 1
    fi
fi

step() { printf '\n== %s\n' "$*"; }

step "formatting and lints"
cargo fmt --all --check
cargo clippy --workspace --all-targets --quiet -- -D warnings

step "the reference peer"
interop/build.sh
gofmt_out=$(gofmt -l interop)
[ -z "$gofmt_out" ] || { echo "gofmt: $gofmt_out" >&2; exit 1; }
(cd interop && go vet ./...)

step "tests"
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --no-fail-fast
    cargo test --workspace --doc --quiet
else
    cargo test --workspace --no-fail-fast
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

step "documentation"
scripts/check-proof.sh
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

echo
echo "All checks passed."
