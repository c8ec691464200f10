#!/usr/bin/env bash
# The long runs against a whole fleet of real processes: faults of every kind on both stores, random
# changes under live streams, revocation times beside 200 more nodes, ten minutes without a master, a
# database killed, paused and restarted under 200 requests a second, a restore on an empty host, how long wrong logins take.
# Prints seeds and figures; a run is repeated with HY2_SEED. Full disks need the right to
# mount: without root this fails and says so.
#   scripts/chaos.sh [FILTER ...]   only tests with these words in their names
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh
need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"
need go golang "the reference client"

# The other two build the programs that the fleet is made of.
cargo test --workspace --test real_fleet --test command_line --test pair --no-run
if [ $# = 0 ]; then set -- chaos changes revocation quota outage database restored; fi
HY2_FULL=1 cargo test --workspace --test real_fleet -- --nocapture --test-threads=1 "$@"
# Judges times as well: by ranks, of logins that must not be told apart.
HY2_FULL=1 cargo test --workspace --test api -- --nocapture --test-threads=1 how_long_a_wrong_login_takes
