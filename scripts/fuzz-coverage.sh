#!/usr/bin/env bash
# Prints how much of hy2-proto the committed corpora of its own fuzz targets run, by file, and fails
# below LEAST=90 percent of its lines: scripts/fuzz-coverage.sh
#
# Generated code is left out: it is prost's and tonic's. SHOW=1 prints the lines that nothing ran.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh
need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"

# Targets whose subject is in hy2-proto.
targets="address auth_headers bandwidth brutal control_messages fragments gecko_frame gecko_reassembly padding ports
    salamander share_uri speedtest tcp_request tcp_response udp_message varint"
least=${LEAST:-90}

host=$(rustc -vV | sed -n 's/^host: //p')
tools=$(rustc --print sysroot)/lib/rustlib/$host/bin
if [ ! -x "$tools/llvm-cov" ] && ! rustup component add llvm-tools; then
    echo "error: the compiler's llvm-cov is missing; install it with: rustup component add llvm-tools" >&2
    exit 1
fi

out=fuzz/target/coverage
rm -rf "$out"
mkdir -p "$out"
# Only the crate in question is measured, and the test program, which brings the runtime along. Flags
# for single crates are unstable; the compiler and everything else are the stable ones.
instrument='["-C","instrument-coverage"]'
build=(cargo --config "profile.dev.package.hy2-proto.rustflags=$instrument"
    --config "profile.dev.package.hy2-fuzz.rustflags=$instrument"
    -Z profile-rustflags test --locked --manifest-path fuzz/Cargo.toml --test replay)
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
program=$("${build[@]}" --no-run --message-format=json |
    sed -nE 's/.*"name":"replay".*"executable":"([^"]+)".*/\1/p' | tail -n 1)
LLVM_PROFILE_FILE=$PWD/$out/%p.profraw HY2_FUZZ_TARGETS=$targets "$program" --exact every_corpus_passes --quiet
"$tools/llvm-profdata" merge --sparse "$out"/*.profraw -o "$out/all.profdata"
sources=(hy2-proto/src)
ignore='/gen/|/tests\.rs$'
"$tools/llvm-cov" report "$program" --instr-profile "$out/all.profdata" --ignore-filename-regex "$ignore" \
    "${sources[@]}" | awk '/^-/ { next } NF >= 10 || /^Filename/ { print }' >"$out/report"
# Columns: regions, missed, %, functions, missed, %, lines, missed, %.
awk 'NR > 1 { printf "%-28s %6s lines %5s missed %8s\n", $1, $8, $9, $10 }' "$out/report"
if [ -n "${SHOW:-}" ]; then
    "$tools/llvm-cov" show "$program" --instr-profile "$out/all.profdata" \
        --ignore-filename-regex "$ignore" "${sources[@]}" | grep -E '^/|^ *[0-9]+\| *0\|'
fi
share=$(awk '$1 == "TOTAL" { sub("%", "", $10); print $10 }' "$out/report")
echo "hy2-proto: $share % of lines by the corpora of its targets"
awk -v share="$share" -v least="$least" 'BEGIN { exit !(share >= least) }' || {
    echo "error: below $least %" >&2
    exit 1
}
