#!/usr/bin/env bash
# Fuzzes every target in turn and prints executions, coverage and finds: scripts/fuzz.sh [seconds] [target...]
#
# RUNS=n ends a target after n executions as well, whichever comes first; seconds may be 0 then, for
# no limit. What was found to be new stays in fuzz/target/corpus, so a later run goes on from there.
#
# TIMEOUT=n is for a machine that others use as well: an input that takes longer than n seconds, not
# 10, is a find.
#
# A stable compiler will do: coverage needs no nightly flag, and the address sanitizer, which does,
# has little to look for where no crate of ours may use unsafe code. SANITIZER=address asks for it
# and takes the nightly compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh

need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"
need c++ g++ "the C++ compiler that libFuzzer needs"

each=${1:-60}
[ $# -eq 0 ] || shift
case $each in
'' | *[!0-9]*)
    echo "error: '$each' is no number of seconds" >&2
    exit 2
    ;;
esac
runs=${RUNS:--1}
case $runs in
-1) [ "$each" -gt 0 ] || { echo "error: 0 seconds need RUNS=n" >&2; exit 2; } ;;
'' | *[!0-9]*)
    echo "error: RUNS='$runs' is no number of executions" >&2
    exit 2
    ;;
esac
sanitizer=${SANITIZER:-none}
toolchain=()
[ "$sanitizer" = none ] || toolchain=(+nightly)

if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "== cargo-fuzz is missing; installing it"
    cargo install --locked cargo-fuzz || {
        echo "error: fuzzing needs cargo-fuzz, which cannot be installed here. Install it with" >&2
        echo "  cargo install --locked cargo-fuzz" >&2
        echo "and run this again; \`make fuzz-replay\` runs the committed inputs without it." >&2
        exit 1
    }
fi

cd fuzz
if [ $# -gt 0 ]; then
    targets=("$@")
else
    mapfile -t targets < <(cd fuzz_targets && printf '%s\n' *.rs | sed 's/\.rs$//')
fi
for target in "${targets[@]}"; do
    [ -f "fuzz_targets/$target.rs" ] || {
        echo "error: there is no target '$target'; there are: $(cd fuzz_targets && echo *.rs | sed 's/\.rs//g')" >&2
        exit 2
    }
done

echo "== building ${#targets[@]} targets"
# The code is fuzzed as it ships: no `cfg(fuzzing)`, which turns checks off in some dependencies.
# A target directory of its own, because instrumented builds share nothing with others.
build=(cargo "${toolchain[@]}" fuzz build --fuzz-dir . --target-dir target --sanitizer "$sanitizer"
    --no-cfg-fuzzing --features libfuzzer)
if [ $# -gt 0 ]; then
    for target in "${targets[@]}"; do "${build[@]}" "$target"; done
else
    "${build[@]}"
fi
host=$(rustc "${toolchain[@]}" -vV | sed -n 's/^host: //p')
# Copies, because planted.sh builds into the same directory.
mkdir -p target/bin
for target in "${targets[@]}"; do
    cp -f "target/$host/release/$target" "target/bin/$target"
done

# Longest input, in bytes. Time goes with length, and where nothing longer has a meaning of its own,
# short inputs find more in the same time.
longest() {
    case $1 in
    address | bandwidth | padding | varint) echo 512 ;;
    brutal | congestion | gecko_reassembly | leases | ledger | reassembler | spool | udp_sessions) echo 1024 ;;
    *) echo 8192 ;;
    esac
}

printf '\n%-20s %14s %9s %7s %9s %7s  %s\n' target executions per-second edges features corpus finds
found=0 total=0
for target in "${targets[@]}"; do
    # New inputs go into the first folder; the committed corpus is only read.
    grown=target/corpus/$target
    artifacts=artifacts/$target
    log=target/logs/$target.log
    mkdir -p "$grown" "$artifacts" target/logs
    outcome=none
    "target/bin/$target" "$grown" "corpus/$target" \
        -max_total_time="$each" -runs="$runs" -max_len="$(longest "$target")" -timeout="${TIMEOUT:-10}" -rss_limit_mb=2048 \
        -print_final_stats=1 -artifact_prefix="$artifacts/" >"$log" 2>&1 || outcome=FOUND
    # The last line of progress: "#12345 DONE cov: 12 ft: 34 corp: 56/789b ...".
    progress=$(grep -aE '^#[0-9]+.* cov: ' "$log" | tail -n 1 || true)
    value() { sed -nE "s/.* $1: ([0-9]+).*/\1/p" <<<"$progress"; }
    executions=$(sed -nE 's/^stat::number_of_executed_units: *([0-9]+)/\1/p' "$log")
    rate=$(sed -nE 's/^stat::average_exec_per_sec: *([0-9]+)/\1/p' "$log")
    total=$((total + ${executions:-0}))
    printf '%-20s %14s %9s %7s %9s %7s  %s\n' "$target" "${executions:--}" "${rate:--}" \
        "$(value cov)" "$(value ft)" "$(value corp)" "$outcome"
    if [ "$outcome" != none ]; then
        found=1
        grep -aE "panicked at|^ERROR|SUMMARY|Test unit written" -A 1 "$log" | sed 's/^/    /' || true
    fi
done
printf '%-20s %14s\n' "all ${#targets[@]}" "$total"
if [ "$found" -ne 0 ]; then
    echo
    echo "Inputs are in fuzz/artifacts, logs in fuzz/target/logs. Make each smaller with" >&2
    echo "  cargo fuzz tmin --fuzz-dir fuzz -s $sanitizer --features libfuzzer TARGET INPUT" >&2
    exit 1
fi
