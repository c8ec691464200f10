#!/usr/bin/env bash
# Works on the fleet that dev-start.sh left running.
#   scripts/dev-fleet.sh health               ask every part how it is; fails when one is not well
#   scripts/dev-fleet.sh logs [PATTERN]       last lines of the logs (TAIL=40); FOLLOW=1 goes on
#   scripts/dev-fleet.sh migrate              bring the database to this build's schema
#   scripts/dev-fleet.sh backup FILE          encrypted backup of the database
#   scripts/dev-fleet.sh restore FILE         empty database, restore, start again, agents come back
#   scripts/dev-fleet.sh scale COUNT          add or remove agents until there are COUNT
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh
. scripts/dev-lib.sh

# Of a development fleet; a real one's is a secret in a file.
export HY2_BACKUP_PASSPHRASE=${HY2_BACKUP_PASSPHRASE:-a development fleet}

[ -f "$dir/ports" ] || {
    echo "error: no development fleet is running here: make dev-start" >&2
    exit 1
}

health() {
    local bad=0 name
    line() { printf '  %-22s %s\n' "$1" "$2"; }
    # Redis is a cache: its absence is said, and is no failure.
    if [ "${mode:-}" = full ]; then
        if redis-cli -p "$redis" ping >/dev/null 2>&1; then line redis "answers"; else
            line redis "does not answer (cache and shared rate limits are off, nothing else)"
        fi
    fi
    for path in healthz readyz; do
        if curl -fsS -o /dev/null "http://127.0.0.1:$rest/$path" 2>/dev/null; then
            line "orchestrator /$path" "ok"
        else
            line "orchestrator /$path" "FAILS"
            bad=1
        fi
    done
    while IFS='|' read -r name _; do
        if ! running "agent-$name"; then
            line "agent $name" "is NOT RUNNING"
            bad=1
        elif ! "$target/debug/hy2-agent" status -c "$dir/agent-$name.yaml" >"$dir/status" 2>&1; then
            line "agent $name" "does NOT ANSWER: $(head -n 1 "$dir/status")"
            bad=1
        else
            local engine master
            engine=$(awk '$1 == "engine" { print $2 }' "$dir/status")
            master=$(awk '$1 == "master" { $1 = ""; print substr($0, 2) }' "$dir/status")
            line "agent $name" "engine $engine, master $master"
            [ "$engine" = serving ] && [ "$master" = connected ] || bad=1
        fi
    done <"$dir/nodes"
    rm -f "$dir/status"
    return $bad
}

logs() {
    local pattern=${1:-} files=()
    for file in "$dir"/${pattern:-}*.log; do
        [ ! -f "$file" ] || files+=("$file")
    done
    [ ${#files[@]} -gt 0 ] || fail "there are no such logs"
    tail -n "${TAIL:-40}" ${FOLLOW:+-F} "${files[@]}"
}

backup() {
    [ -n "${1:-}" ] || fail "name the file: make db-backup BACKUP=file"
    mkdir -p "$(dirname "$1")"
    "$target/debug/hy2-orchestrator" backup -c "$dir/orchestrator.yaml" --out "$1"
    # The next fleet has another key, and this one's ends with it. A real one is kept apart.
    cp "$dir/master.key" "$1.key"
    echo "Wrote $1, and the master key beside it."
}

restore() {
    local file=${1:-} count old=$dir/before-restore server='' key=$dir/master.key
    [ -f "$file" ] || fail "name the file: make db-restore BACKUP=file"
    [ ! -f "$file.key" ] || key=$file.key
    # While the fleet still runs: a file that does not open, or a key that is not the backup's, changes nothing.
    (umask 077 && mkdir -p "$old" && : >"$old/orchestrator.yaml")
    awk -v key="$(realpath "$key")" '$1 == "keyFile:" { $0 = "keyFile: " key } { print }' \
        "$dir/orchestrator.yaml" >"$old/orchestrator.yaml"
    "$target/debug/hy2-orchestrator" restore -c "$old/orchestrator.yaml" --in "$file" --check || {
        rm -rf "$old"
        fail "$file cannot be restored; nothing is changed"
    }
    count=$(wc -l <"$dir/nodes")
    stop_one orchestrator
    # A restore wants an empty database, so that it cannot destroy one by mistake. The old one is put aside until the
    # new one is there.
    cp -p "$dir/master.key" "$old/master.key"
    if [ "${mode:-}" = full ]; then
        server=$(awk '$1 == "database:" { print $2 }' "$dir/orchestrator.yaml")
        server=${server%/*}/postgres
        psql -q "$server" -c 'drop database if exists hy2_old with (force)' \
            -c "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'hy2'" \
            -c 'alter database hy2 rename to hy2_old' -c 'create database hy2' >/dev/null
    else
        mv "$dir"/fleet.db* "$old/"
    fi
    cmp -s "$key" "$dir/master.key" || cp "$key" "$dir/master.key"
    if ! "$target/debug/hy2-orchestrator" restore -c "$dir/orchestrator.yaml" --in "$file"; then
        if [ -n "$server" ]; then
            psql -q "$server" -c 'drop database hy2 with (force)' -c 'alter database hy2_old rename to hy2'
        else
            rm -f "$dir"/fleet.db*
            mv "$old"/fleet.db* "$dir/"
        fi
        cp -p "$old/master.key" "$dir/master.key"
        rm -rf "$old"
        start_orchestrator
        fail "$file was not restored; the fleet is as it was"
    fi
    start_orchestrator
    wait_for "the nodes" serving "$count"
    # The backup itself says that they serve; the agents know.
    wait_for "the agents" health
    [ -z "$server" ] || psql -q "$server" -c 'drop database hy2_old with (force)'
    rm -rf "$old"
    echo "Restored from $file; $count nodes are back."
}

scale() {
    local wanted=${1:-} have name number id
    [[ $wanted =~ ^[0-9]+$ ]] && [ "$wanted" -ge 1 ] && [ "$wanted" -le 32 ] ||
        fail "COUNT must be 1 to 32: make scale-agents COUNT=5"
    have=$(wc -l <"$dir/nodes")
    while [ "$have" -lt "$wanted" ]; do
        number=$(($(tail -n 1 "$dir/nodes" | cut -d'|' -f6) + 1))
        name=extra-$number
        add_node "$name" "this machine"
        id=$(node_ids "$name" | tr -d '[] ')
        call POST /assignments "{\"user_id\":$(cat "$dir/user"),\"node_id\":$id}" >/dev/null
        echo "  $name enrolled, alice may use it"
        have=$((have + 1))
    done
    while [ "$have" -gt "$wanted" ]; do
        name=$(tail -n 1 "$dir/nodes" | cut -d'|' -f1)
        id=$(node_ids "$name" | tr -d '[] ')
        # A node that serves is not deleted. The agent ends before that: what it counted last still arrives.
        call PUT "/nodes/$id/state" '{"state":"disabled"}' >/dev/null
        stop_one "client-$name"
        stop_one "agent-$name"
        call DELETE "/nodes/$id" >/dev/null
        sed -i '$d' "$dir/nodes"
        rm -rf "${dir:?}/$name" "$dir/agent-$name".* "$dir/client-$name".* "$dir/enrol-$name.log"
        echo "  $name removed"
        have=$((have - 1))
    done
    wait_for "$wanted nodes" serving "$wanted"
    echo "$wanted agents are serving."
}

case "${1:-}" in
health) health ;;
logs) logs "${2:-}" ;;
migrate) "$target/debug/hy2-orchestrator" migrate -c "$dir/orchestrator.yaml" ;;
backup) backup "${2:-}" ;;
restore) restore "${2:-}" ;;
scale) scale "${2:-}" ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
