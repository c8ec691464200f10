#!/usr/bin/env bash
# Counts the instructions of every case of the microbenches under callgrind, which noise cannot
# move, and compares them with benches/micro/instructions.txt.
#   scripts/instructions.sh            compare; fails when a case takes 5 % and 3 instructions more
#   scripts/instructions.sh --update   write the file
#   ONLY=salamander scripts/instructions.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh
need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"
if ! command -v valgrind >/dev/null 2>&1; then
    echo "valgrind is missing: no instructions are counted (package 'valgrind')." >&2
    exit 0
fi

baseline=benches/micro/instructions.txt
cargo build --release --workspace --bin hy2-instructions
program=target/release/hy2-instructions

# Total instructions of `count` calls of a case, preparation included.
total() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" "$1" "$2" 2>&1 >/dev/null |
        sed -n 's/.*Collected : //p'
}

result=$(mktemp)
trap 'rm -f "$result"' EXIT
echo "# instructions per call, by $(rustc --version | cut -d' ' -f1,2), $(uname -m)" >"$result"
"$program" | while IFS=$'\t' read -r name items; do
    case "$name" in
    *"${ONLY:-}"*) ;;
    *) continue ;;
    esac
    # Few calls of what takes long; the difference of two runs has no preparation in it.
    case "$name" in
    stack/*) few=2 many=12 ;;
    reassembler/* | control/*batch* | batch/* | *bulk*) few=20 many=120 ;;
    *) few=1000 many=3000 ;;
    esac
    a=$(total "$name" "$few")
    b=$(total "$name" "$many")
    printf '%s\t%s\n' "$name" $(((b - a) / (many - few)))
    printf '%-42s %12s\n' "$name" $(((b - a) / (many - few))) >&2
done >>"$result"

if [ "${1:-}" = --update ]; then
    cp "$result" "$baseline"
    echo "written to $baseline"
    exit 0
fi
if [ "$(head -1 "$baseline")" != "$(head -1 "$result")" ]; then
    echo "note: counted with another compiler or machine than $baseline: $(head -1 "$result")" >&2
fi
awk -F'\t' '
    /^#/ { next }
    NR == FNR { old[$1] = $2; next }
    !($1 in old) { printf "new: %s takes %d; --update to keep that\n", $1, $2; next }
    # What runs a whole stack depends a little on chance (padding, connection numbers).
    { slack = $1 ~ /^stack/ ? 1.10 : 1.05 }
    $2 > old[$1] * slack + 3 { printf "more: %s takes %d, was %d\n", $1, $2, old[$1]; bad = 1 }
    $2 * slack + 3 < old[$1] { printf "fewer: %s takes %d, was %d; --update to keep that\n", $1, $2, old[$1] }
    END { exit bad }
' "$baseline" "$result" && echo "no case takes more than before"
