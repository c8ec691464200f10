#!/usr/bin/env bash
# Looks at what would be published: every package has both licences and a README where it says so;
# licences, bans and sources of everything below it are checked where cargo-deny is installed
# (`make deny` installs it, `make package` builds every package from its archive).
set -euo pipefail
cd "$(dirname "$0")/.."

wrong=0
packages=$(cargo metadata --no-deps --format-version 1 |
    python3 -c 'import json, sys
for package in json.load(sys.stdin)["packages"]:
    if package["publish"] is None:
        print(package["name"], bool(package["readme"]))')
while read -r package readme; do
    files=$(cargo package --list --allow-dirty --package "$package")
    for file in LICENSE-MIT LICENSE-APACHE; do
        grep -qx "$file" <<<"$files" || { echo "$package: no $file"; wrong=1; }
    done
    if [ "$readme" = True ] && ! grep -qx README.md <<<"$files"; then
        echo "$package: no README.md"
        wrong=1
    fi
done <<<"$packages"
[ "$wrong" = 0 ] || exit 1
echo "$(wc -l <<<"$packages") packages have their licences"

if command -v cargo-deny >/dev/null 2>&1; then
    cargo deny check bans licenses sources
else
    echo "skipped: cargo-deny is not installed (make deny installs it and checks licences, bans and sources)"
fi
