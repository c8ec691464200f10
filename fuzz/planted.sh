#!/usr/bin/env bash
# Proves that the fuzz targets find: fuzz/planted.sh [target...]
#
# Every target has a bug in planted/TARGET.patch, named on top of its module. All of them are put
# into one copy of the tree, where HY2_PLANTED=TARGET switches one on; each target has to find its
# own within LIMIT=600 seconds, with the committed corpus to begin with. SEEDS=0: without it.
#
# A bug that a committed input shows by itself has to be found by mutation, too: the target runs
# again without that input, and what is printed is of that run. The table is in Markdown, as
# docs/fuzzing.md has it.
set -euo pipefail
cd "$(dirname "$0")"
. ../scripts/needs.sh

need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"
need c++ g++ "the C++ compiler that libFuzzer needs"
need patch patch "to plant the bugs"
cargo fuzz --version >/dev/null 2>&1 || {
    echo "error: cargo-fuzz is missing; install it with: cargo install --locked cargo-fuzz" >&2
    exit 1
}

limit=${LIMIT:-600}
if [ $# -gt 0 ]; then
    targets=("$@")
else
    mapfile -t targets < <(cd fuzz_targets && printf '%s\n' *.rs | sed 's/\.rs$//')
fi
for target in "${targets[@]}"; do
    [ -f "planted/$target.patch" ] || { echo "error: no bug is planted for '$target'" >&2; exit 2; }
done

root=$(cd .. && pwd)
here=$root/fuzz
work=$here/target/planted
fresh=$work/fresh tree=$work/tree
rm -rf "$fresh"
mkdir -p "$fresh" "$tree" "$work/bin" "$work/logs"
# The tree as it is, without what is only input: files that are not committed yet included.
(cd "$root" && git ls-files -co --exclude-standard -z -- . ':!fuzz/corpus' ':!docs' |
    while IFS= read -r -d '' file; do [ -e "$file" ] && printf '%s\0' "$file"; done |
    tar --null -cf - --files-from=-) | tar -xf - -C "$fresh"
for patch in planted/*.patch; do
    patch --quiet -p1 -d "$fresh" <"$patch" || { echo "error: $patch does not apply" >&2; exit 1; }
done
cat >>"$fresh/hy2-proto/src/lib.rs" <<'RUST'

/// Whether this bug is switched on.
#[doc(hidden)]
pub fn planted(name: &str) -> bool {
    static NAME: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let name_of = || std::env::var("HY2_PLANTED").ok();
    NAME.get_or_init(name_of).as_deref() == Some(name)
}
RUST
# Files that are the same keep their time, so that only what changed is built again.
(cd "$fresh" && find . -type f -print0 | while IFS= read -r -d '' file; do
    cmp -s "$file" "$tree/$file" || { mkdir -p "$tree/${file%/*}" && cp "$file" "$tree/$file"; }
done)

echo "== building ${#targets[@]} targets with their bugs"
# Into the directory of the fuzzers proper, for the compiled dependencies.
build=(cargo fuzz build --fuzz-dir "$tree/fuzz" --target-dir "$here/target" --sanitizer none
    --no-cfg-fuzzing --features libfuzzer)
if [ $# -gt 0 ]; then
    for target in "${targets[@]}"; do "${build[@]}" "$target"; done
else
    "${build[@]}"
fi
host=$(rustc -vV | sed -n 's/^host: //p')
for target in "${targets[@]}"; do
    cp -f "target/$host/release/$target" "$work/bin/$target"
done

printf '\n| %-20s | %12s | %9s | %s |\n' target executions seconds found
echo '|---|---:|---:|---|'
missed=0
for target in "${targets[@]}"; do
    grown=$work/corpus/$target log=$work/logs/$target.log seeds=$work/seeds/$target
    found=$work/found/$target
    rm -rf "$seeds" && mkdir -p "$seeds"
    [ "${SEEDS:-1}" = 0 ] || cp "corpus/$target"/* "$seeds/"
    set_aside=0
    while :; do
        rm -rf "$grown" "$found" && mkdir -p "$grown" "$found"
        started=$(date +%s.%N)
        HY2_PLANTED=$target "$work/bin/$target" "$grown" "$seeds" -max_total_time="$limit" \
            -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
            -artifact_prefix="$found/" >"$log" 2>&1 && outcome=NO || outcome=yes
        seconds=$(awk -v from="$started" -v to="$(date +%s.%N)" 'BEGIN { printf "%.1f", to - from }')
        executions=$(sed -nE 's/^stat::number_of_executed_units: *([0-9]+)/\1/p' "$log")
        what=$(grep -aE -A 1 'panicked at' "$log" | tail -n 1 | cut -c 1-60 | tr '|`' '/ ')
        if [ "$outcome" = yes ] && ! grep -qa 'panicked at' "$log"; then
            outcome=NO what="it failed otherwise, see $log"
        fi
        # A run of the seeds alone has not mutated anything.
        if [ "$outcome" = NO ] || [ -z "$(ls "$seeds")" ] || grep -qaE '^#[0-9]+\s+INITED' "$log"; then
            break
        fi
        before=$set_aside
        for seed in "$seeds"/*; do
            if cmp -s "$seed" "$found"/crash-*; then
                rm "$seed"
                set_aside=$((set_aside + 1))
            fi
        done
        # One that is longer than an input may be.
        [ "$set_aside" -gt "$before" ] || { set_aside=$((set_aside + $(ls "$seeds" | wc -l))); rm "$seeds"/*; }
    done
    case $outcome-$set_aside in
    NO-0) missed=1 ;;
    NO-*) missed=1 outcome="NO, but by a seed" ;;
    yes-0) outcome="by mutation" ;;
    yes-1) outcome="by mutation, without the seed that shows it" ;;
    yes-*) outcome="by mutation, without the $set_aside seeds that show it" ;;
    esac
    printf '| `%s` | %s | %s | %s: %s |\n' "$target" "${executions:--}" "$seconds" "$outcome" "$what"
done
exit "$missed"
