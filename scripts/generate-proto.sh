#!/usr/bin/env bash
# Generates the gRPC code and the descriptor from hy2-proto/proto. Needs no protoc, nor code that compiles.
#   scripts/generate-proto.sh            after a change of a .proto file
#   scripts/generate-proto.sh --release  also makes the present contract the one that may only grow
set -euo pipefail
cd "$(dirname "$0")/.."
HY2_REGENERATE=1 cargo test -q --workspace --test codegen -- committed_code
if [ "${1:-}" = --release ]; then
    cp hy2-proto/proto/descriptor.binpb hy2-proto/proto/released.binpb
fi
