#!/usr/bin/env bash
# `make run`, `make dev-full` and what make does with a running fleet, each once, in a folder and on ports of
# their own; at the end nothing is left: no process, no port, no file.
set -euo pipefail
cd "$(dirname "$0")/.."

# All of them below the ports that the system gives to whoever connects.
base=$((21000 + RANDOM % 85 * 20))
HY2_DEV_DIR=$(mktemp -d)
export HY2_DEV_DIR HY2_DEV_MEBIBYTES=4
export HY2_DEV_REST_PORT=$base HY2_DEV_GRPC_PORT=$((base + 1)) HY2_DEV_PUBLIC_PORT=$((base + 2))
export HY2_DEV_ORIGIN_PORT=$((base + 3)) HY2_DEV_REDIS_PORT=$((base + 4))
export HY2_DEV_HYSTERIA_PORT=$((base + 5)) HY2_DEV_SOCKS_PORT=$((base + 10)) HY2_DEV_MANAGER_PORT=$((base - 10000))
HY2_RUN_DIR=$(mktemp -d)
export HY2_RUN_DIR HY2_MEBIBYTES=8
export HY2_SERVER_PORT=$((base + 15)) HY2_SOCKS_PORT=$((base + 16)) HY2_HTTP_PORT=$((base + 17)) HY2_ORIGIN_PORT=$((base + 18))
ended() {
    make -s dev-stop >/dev/null
    make -s stop >/dev/null
    rm -rf "$HY2_DEV_DIR" "$HY2_RUN_DIR"
}
trap ended EXIT

# expect TEXT COMMAND...: the command succeeds and says so
expect() {
    local text=$1 said
    shift
    said=$("$@" 2>&1) || { printf 'error: %s fails:\n%s\n' "$*" "$said" >&2; exit 1; }
    grep -qF -- "$text" <<<"$said" || { printf 'error: %s does not say "%s":\n%s\n' "$*" "$text" "$said" >&2; exit 1; }
    echo "-- $*"
}
refuse() {
    local text=$1 said
    shift
    if said=$("$@" 2>&1); then printf 'error: %s succeeds\n' "$*" >&2; exit 1; fi
    grep -qF -- "$text" <<<"$said" || { printf 'error: %s does not say "%s":\n%s\n' "$*" "$text" "$said" >&2; exit 1; }
    echo "-- $*: refused"
}

# The pair: every line that it prints as one to try works.
expect "checksum right" make -s run
expect "came through the tunnel" curl -fsS -x "socks5h://127.0.0.1:$HY2_SOCKS_PORT" "http://127.0.0.1:$HY2_ORIGIN_PORT/"
expect "came through the tunnel" curl -fsS -x "http://127.0.0.1:$HY2_HTTP_PORT" "http://127.0.0.1:$HY2_ORIGIN_PORT/"
expect "hysteria2://" "${CARGO_TARGET_DIR:-target}/debug/hy2" share -c "$HY2_RUN_DIR/client.yaml" --qr
pair=$(cat "$HY2_RUN_DIR"/*.pid | paste -sd' ')
expect "Stopped" make -s stop
for process in $pair; do
    ! grep -qs '^State:[[:space:]][^Z]' "/proc/$process/status" || { echo "error: process $process is left" >&2; exit 1; }
done

rmdir "$HY2_DEV_DIR"
refuse "make dev-start" make -s health
expect "PostgreSQL and Redis" make -s dev-full
processes=$(cat "$HY2_DEV_DIR"/*.pid | paste -sd' ')
postgres=$(cat "$HY2_DEV_DIR/postgres-dir")
expect "master connected" make -s health
expect "orchestrator.log" make -s logs-all TAIL=3
expect "running" make -s logs-orchestrator
expect "agent-europe.log" make -s logs-agents TAIL=3
expect "up to date" make -s db-migrate
refuse "COUNT must be" make -s scale-agents COUNT=none
expect "5 agents are serving" make -s scale-agents COUNT=5
expect "agent extra-4" make -s health
expect "2 agents are serving" make -s scale-agents COUNT=2

backup=$HY2_DEV_DIR/kept.backup
expect "Wrote" make -s db-backup BACKUP="$backup"
refuse "name the file" make -s db-restore
head -c 600 "$backup" >"$backup.cut"
refuse "nothing is changed" make -s db-restore BACKUP="$backup.cut"
expect "master connected" make -s health
expect "2 nodes are back" make -s db-restore BACKUP="$backup"
expect "master connected" make -s health

# What the cache holds is no loss: the fleet goes on without Redis.
kill -9 "$(cat "$HY2_DEV_DIR/redis.pid")"
expect "does not answer (cache" make -s health

expect "is removed" make -s dev-stop
for process in $processes; do
    ! grep -qs '^State:[[:space:]][^Z]' "/proc/$process/status" || { echo "error: process $process is left" >&2; exit 1; }
done
for left in "$HY2_DEV_DIR" "$postgres"; do
    [ ! -e "$left" ] || { echo "error: $left is left" >&2; exit 1; }
done
python3 - "$base" <<'PYTHON'
import socket, sys
base = int(sys.argv[1])
for port in [*range(base, base + 5), *range(base + 16, base + 19), *(base + 10000 + 10 * n for n in range(5))]:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", port))
PYTHON
echo "Nothing is left: no process, no file, no port."
