#!/usr/bin/env bash
# The README's first command: a whole fleet on this machine. Builds, starts an orchestrator and
# three agents, enrols them, makes a user, carries checksummed traffic through each node with the
# user's subscription, and shows the bytes that the orchestrator counted. Leaves the fleet running.
#   scripts/dev-start.sh        on SQLite
#   scripts/dev-start.sh full   on PostgreSQL and Redis, from Debian's packages
#   scripts/dev-start.sh stop   stop what an earlier start left running and remove its files
# HY2_DEV_*_PORT moves it to other ports (scripts/dev-lib.sh); dev-fleet.sh works on what runs.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh
. scripts/dev-lib.sh

mode=${1:-sqlite}
case "$mode" in
sqlite | full) ;;
stop)
    stop_all
    rm -rf "$dir"
    echo "Stopped; $dir is removed."
    exit 0
    ;;
*)
    echo "error: $mode: say nothing, full or stop" >&2
    exit 2
    ;;
esac

need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"
need cc gcc "the C compiler that aws-lc and SQLite need"
need curl curl "to talk to the orchestrator and fetch through the nodes"
need python3 python3 "a small web server as the origin, and to read JSON"
if [ "$mode" = full ]; then
    need_postgres "the fleet's database"
    need redis-server redis-server "the fleet's cache"
fi

stop_all
rm -rf "$dir"
mkdir -p "$dir/origin"
chmod 700 "$dir"
build hy2 hy2-orchestrator hy2-agent

cat >"$dir/ports" <<END_OF_PORTS
mode=$mode
rest=$rest
grpc=$grpc
public=$public
origin=$origin
redis=$redis
hysteria=$hysteria
manager=$manager
socks=$socks
END_OF_PORTS

database=sqlite:$dir/fleet.db
if [ "$mode" = full ]; then
    echo "Starting PostgreSQL and Redis ..."
    # Not under $dir, which is for this user alone: PostgreSQL runs as its own.
    postgres=$(mktemp -d "${TMPDIR:-/tmp}/hy2-dev-postgres.XXXXXX")
    echo "$postgres" >"$dir/postgres-dir"
    server=$(scripts/test-postgres.sh start "$postgres" 0 durable)
    database=${server%/*}/hy2
    psql -q "$server" -c 'create database hy2'
    start_redis
fi
cat >"$dir/orchestrator.yaml" <<END_OF_CONFIG
database: $database
keyFile: $dir/master.key
agents:
  listen: 127.0.0.1:$grpc
  names: [localhost, 127.0.0.1]
api:
  listen: 127.0.0.1:$rest
public:
  listen: 127.0.0.1:$public
  url: http://127.0.0.1:$public/
END_OF_CONFIG
[ "$mode" != full ] || echo "redis: redis://127.0.0.1:$redis" >>"$dir/orchestrator.yaml"
chmod 600 "$dir/orchestrator.yaml"
start_orchestrator
admin=$(awk '$1 == "administrator" { print $2 }' "$dir/orchestrator.out")
secret=$(awk '$1 == "password" { print $2 }' "$dir/orchestrator.out")
[ -n "$secret" ] || fail "the orchestrator printed no first administrator"
# A session for one thing: a token that the other commands of `make` use too.
session=$(curl -fsS -H 'Content-Type: application/json' -d "{\"username\":\"$admin\",\"password\":\"$secret\"}" \
    "$api/auth/login" | field access_token)
(umask 077 && curl -fsS -H "Authorization: Bearer $session" -H 'Content-Type: application/json' \
    -d '{"name":"make","scopes":["nodes:read","nodes:write","users:read","users:write","configs:read","configs:write","subscriptions:read","traffic:read"]}' \
    "$api/api-tokens" | field token >"$dir/token")

# The origin of this demonstration is on this machine, which a node refuses otherwise.
call PUT /configs/fleet/0 '{"body":{"allow_private_targets":true,"speed_test":true},"message":"development fleet"}' >/dev/null

add_node us-east "New York"
add_node europe Frankfurt
add_node asia Singapore

user=$(call POST /users "{\"username\":\"alice\",\"note\":\"made by dev-start\",\"node_ids\":$(node_ids)}")
user_id=$(field id <<<"$user")
echo "$user_id" >"$dir/user"
link=$(call GET "/users/$user_id/subscription" | field url)

head -c "${mebibytes}M" /dev/urandom >"$dir/origin/file"
background origin python3 -m http.server --bind 127.0.0.1 --directory "$dir/origin" "$origin"
wait_for "the origin" curl -fsS -o /dev/null "http://127.0.0.1:$origin/"
wait_for "the three nodes" serving 3

echo
echo "Carrying $mebibytes MiB through each node with the subscription of alice ..."
want=$(sha256sum <"$dir/origin/file")
curl -fsS "$link/plain" | grep '^hy' >"$dir/uris"
while IFS='|' read -r name place port _ proxy _; do
    uri=$(grep ":$port" "$dir/uris") || fail "the subscription does not name $name"
    cat >"$dir/client-$name.yaml" <<END_OF_CONFIG
server: "$uri"
socks5:
  listen: 127.0.0.1:$proxy
END_OF_CONFIG
    background "client-$name" "$target/debug/hy2" client -c "$dir/client-$name.yaml"
    through=(curl -fsS -x "socks5h://127.0.0.1:$proxy")
    wait_for "the client of $name" "${through[@]}" -o /dev/null "http://127.0.0.1:$origin/"
    got=$("${through[@]}" "http://127.0.0.1:$origin/file" | sha256sum)
    [ "$want" = "$got" ] || fail "the file arrived damaged through $name"
    printf '  %-8s (%s): checksum right\n' "$name" "$place"
done <"$dir/nodes"

counted() {
    call GET "/users/$user_id/traffic" | python3 -c 'import json,sys
t = json.load(sys.stdin)
sys.exit(t["rx_bytes"] < int(sys.argv[1]))' $((mebibytes * 3 * 1024 * 1024))
}
echo "  waiting for the nodes' reports ..."
wait_for "the accounting" counted
call GET "/users/$user_id/traffic" | python3 -c 'import json,sys
t = json.load(sys.stdin)
print("  REST counted for alice: %d bytes up, %d bytes down" % (t["tx_bytes"], t["rx_bytes"]))'

cat <<END_OF_TEXT

The fleet is running on $([ "$mode" = full ] && echo "PostgreSQL and Redis" || echo SQLite).
  REST          $api   (document: /api/v1/openapi.json)
  gRPC          127.0.0.1:$grpc (agents), $(awk -F'|' '{ print $1, $4 }' "$dir/nodes" | paste -sd, -) (NodeManager)
  subscription  $link
  administrator $admin
  password      $secret
Try:
  curl -x socks5h://127.0.0.1:$socks http://127.0.0.1:$origin/
  curl $link/clash
  $target/debug/hy2-agent status -c $dir/agent-europe.yaml
  make health; make logs-agents; make scale-agents COUNT=5
Files and logs: $dir
Stop it with: make dev-stop
END_OF_TEXT
