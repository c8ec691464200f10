#!/bin/sh
# Builds the reference peers: `peer` on the current reference library and
# `peer-2.10` on core 2.10 (no Chrome parrot, omits max_datagram_frame_size).
# Usage: build.sh [output directory]   (default: target/interop of this repository)
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=${1:-${CARGO_TARGET_DIR:-$here/../target}/interop}

if ! command -v go >/dev/null 2>&1; then
	echo "interop/build.sh: Go is missing; the interop tests need Go 1.25 or newer (https://go.dev/dl/)" >&2
	exit 1
fi

mkdir -p "$out"
out=$(CDPATH='' cd -- "$out" && pwd)
cd "$here"
go build -trimpath -o "$out/peer" ./peer
go build -trimpath -modfile=core-2.10.mod -tags core210 -o "$out/peer-2.10" ./peer
