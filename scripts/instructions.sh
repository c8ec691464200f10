#!/usr/bin/env bash
# Counts the instructions of every case of the microbenches under callgrind, which noise cannot
# move, and compares them with benches/micro/instructions.txt.
#   scripts/instructions.sh            compare; fails when a case takes 5 % and 3 instructions more,
#                                      has gone or is new
#   scripts/instructions.sh --update   write the file
#   scripts/instructions.sh --judge FILE RESULT   compare a list that was counted before
#   ONLY=salamander scripts/instructions.sh       some of them
set -euo pipefail
cd "$(dirname "$0")/.."
only=${ONLY:-}
baseline=benches/micro/instructions.txt

# Compares the list $2 with the list $1.
judge() {
    local list
    for list; do
        [ -e "$list" ] || {
            echo "error: $list is missing: write it with --update and commit it" >&2
            return 1
        }
    done
    awk -F'\t' -v only="$only" -v file="$1" '
        FNR == 1 { list++; made[list] = $0 }
        /^#/ || !index($1, only) { next }
        list == 1 { was[$1] = $2; next }
        { is[$1] = $2; name[++names] = $1 }
        END {
            same = made[1] == made[2]
            if (!same) print "note: " file " was counted with another compiler, processor or library; more is no failure here:\n" made[1] "\n" made[2]
            for (at = 1; at <= names; at++) {
                # What runs a whole stack depends a little on chance (padding, connection numbers).
                one = name[at]; slack = one ~ /^stack/ ? 1.10 : 1.05
                if (!(one in was)) { printf "new: %s takes %d, and %s does not have it\n", one, is[one], file; bad = 1 }
                else if (is[one] + 0 <= 0) { printf "nothing: %s was not counted\n", one; bad = 1 }
                else if (is[one] > was[one] * slack + 3) { printf "more: %s takes %d, was %d\n", one, is[one], was[one]; if (same) bad = 1 }
                else if (is[one] * slack + 3 < was[one]) printf "fewer: %s takes %d, was %d; --update to keep that\n", one, is[one], was[one]
            }
            for (one in was) if (!(one in is)) { printf "gone: %s is in %s and was not counted\n", one, file; bad = 1 }
            if (!names) { print "error: there is no case" (only == "" ? "" : " with '\''" only "'\'' in its name"); bad = 1 }
            else if (bad) print "error: see above; what is meant to be so is kept by scripts/instructions.sh --update"
            else print names " cases, " (same ? "none takes more than before" : "not judged: see the note")
            exit bad
        }' "$1" "$2"
}

case "${1:-}" in
'') ;;
--judge)
    judge "$2" "$3"
    exit
    ;;
--update)
    [ -z "$only" ] || {
        echo "error: --update writes the whole list: run it without ONLY" >&2
        exit 1
    }
    ;;
*)
    echo "error: '$1' is not --update or --judge" >&2
    exit 1
    ;;
esac

. scripts/needs.sh
need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"
if ! command -v valgrind >/dev/null 2>&1; then
    echo "valgrind is missing: no instructions are counted (package 'valgrind')." >&2
    exit 0
fi
cargo build --quiet --release --workspace --bin hy2-instructions
program=${CARGO_TARGET_DIR:-target}/release/hy2-instructions

# Adds NAME, tab, instructions per call of the case $1, called $2 times. Only what is below the
# program's `counted` counts: the preparation, which is not the same in each run, does not.
count() {
    local total
    total=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null \
        --toggle-collect='*hy2_instructions*counted*' "$program" "$1" "$2" 2>&1 >/dev/null |
        sed -n 's/.*Collected : //p')
    [ "${total:-0}" -gt 0 ] || {
        echo "error: nothing was counted of '$1'" >&2
        return 1
    }
    printf '%s\t%s\n' "$1" $((total / $2)) >>"$folder/counted"
    printf '%-42s %12s\n' "$1" $((total / $2)) >&2
}
export -f count
export program folder

folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
"$program" >"$folder/all"
awk -F'\t' -v only="$only" 'index($1, only)' "$folder/all" >"$folder/chosen"
touch "$folder/counted"
tr '\t\n' '\0\0' <"$folder/chosen" | xargs -0 -r -n 2 -P "$(nproc)" bash -c 'set -euo pipefail; count "$@"' count
{
    # What the figures depend on beside our code: vector instructions, the C library's copies.
    echo "# instructions per call: $(rustc --version | cut -d' ' -f1,2), $(uname -m)$(! grep -qsw avx2 /proc/cpuinfo || echo ' avx2')," \
        "$(getconf GNU_LIBC_VERSION 2>/dev/null || echo 'another C library'), $(valgrind --version)"
    awk -F'\t' 'NR == FNR { is[$1] = $2; next } $1 in is { print $1 "\t" is[$1] }' "$folder/counted" "$folder/chosen"
} >"$folder/result"

if [ "${1:-}" = --update ]; then
    cp "$folder/result" "$baseline"
    echo "written to $baseline"
    exit
fi
judge "$baseline" "$folder/result"
