#!/usr/bin/env bash
# Checks that every test that docs/proof.md names exists.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=0
# Names have an underscore; files and variables do not match.
for name in $(grep -oE '`[a-z][a-z0-9]*(_[a-z0-9]+)+`' docs/proof.md | tr -d '`' | sort -u); do
    case "$name" in real_link | real_fleet) continue ;; esac
    if ! grep -rqE "fn $name\(" --include='*.rs' hy2-*/tests hy2-*/src daemons; then
        echo "docs/proof.md names a test that does not exist: $name" >&2
        missing=1
    fi
done
exit $missing
