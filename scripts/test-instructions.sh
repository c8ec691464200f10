#!/usr/bin/env bash
# What scripts/instructions.sh makes of lists: what has gone, is new, is empty or takes more is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

# usage: expect ok|failure SENTENCE RESULT-LINES...
expect() {
    local wanted=$1 sentence=$2 got=ok said
    shift 2
    printf '%s\n' "$@" >"$folder/result"
    said=$(scripts/instructions.sh --judge "$folder/list" "$folder/result" 2>&1) || got=failure
    if [ "$got" != "$wanted" ] || ! grep -qF "$sentence" <<<"$said"; then
        echo "error: of '$*' came $got, and not $wanted with '$sentence':" >&2
        echo "$said" >&2
        exit 1
    fi
}

head='# made by one'
printf '%s\n' "$head" $'a/one\t100' $'a/two\t1000' $'stack/all\t1000' >"$folder/list"
expect ok '3 cases, none takes more than before' "$head" $'a/one\t108' $'a/two\t1053' $'stack/all\t1103'
expect failure 'more: a/one takes 109, was 100' "$head" $'a/one\t109' $'a/two\t1000' $'stack/all\t1000'
expect failure 'more: stack/all takes 1104, was 1000' "$head" $'a/one\t100' $'a/two\t1000' $'stack/all\t1104'
expect ok 'fewer: a/two takes 900, was 1000' "$head" $'a/one\t100' $'a/two\t900' $'stack/all\t1000'
expect failure 'gone: a/two is in' "$head" $'a/one\t100' $'stack/all\t1000'
expect failure 'new: b/three takes 5' "$head" $'a/one\t100' $'a/two\t1000' $'b/three\t5' $'stack/all\t1000'
expect failure 'nothing: a/two was not counted' "$head" $'a/one\t100' $'a/two\t' $'stack/all\t1000'
expect failure 'error: there is no case' "$head"
expect ok '3 cases, not judged: see the note' '# made by another' $'a/one\t300' $'a/two\t1000' $'stack/all\t1000'
expect failure 'gone: a/two is in' '# made by another' $'a/one\t300' $'stack/all\t1000'
ONLY=two expect ok '1 cases, none takes more than before' "$head" $'a/two\t1000'
ONLY=nonsense expect failure "error: there is no case with 'nonsense' in its name" "$head" $'a/two\t1000'
mv "$folder/list" "$folder/elsewhere"
expect failure 'is missing: write it with --update' "$head" $'a/one\t100'
echo "what scripts/instructions.sh makes of lists is as it should be"
