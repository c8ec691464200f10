#!/usr/bin/env bash
# The README's first command: a whole fleet on this machine. Builds, starts an orchestrator on SQLite
# and three agents, enrols them, makes a user, carries checksummed traffic through each node with the
# user's subscription, and shows the bytes that the orchestrator counted. Leaves the fleet running.
#   scripts/dev-start.sh        start
#   scripts/dev-start.sh stop   stop what an earlier start left running and remove its files
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh

target=${CARGO_TARGET_DIR:-target}
dir=$target/dev
rest=${HY2_DEV_REST_PORT:-8081}
grpc=${HY2_DEV_GRPC_PORT:-50052}
public=${HY2_DEV_PUBLIC_PORT:-8080}
origin=${HY2_DEV_ORIGIN_PORT:-18000}
mebibytes=${HY2_DEV_MEBIBYTES:-32}
# name, place, Hysteria port, local gRPC port, SOCKS port of the demonstration's client
nodes=(
    "us-east|New York|18441|50061|11081"
    "europe|Frankfurt|18442|50062|11082"
    "asia|Singapore|18443|50063|11083"
)

stop_one() {
    local file=$1 pid
    pid=$(cat "$file")
    rm -f "$file"
    # Only what is still ours: the number may have been given to another process.
    grep -qa "$dir" "/proc/$pid/cmdline" 2>/dev/null || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 150); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
}

stop_all() {
    local name file
    # Agents before the orchestrator, so that it takes their last batches.
    for name in client-* agent-* orchestrator origin; do
        for file in "$dir"/$name.pid; do
            [ ! -f "$file" ] || stop_one "$file"
        done
    done
}

if [ "${1:-}" = stop ]; then
    stop_all
    rm -rf "$dir"
    echo "Stopped; $dir is removed."
    exit 0
fi

need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"
need cc gcc "the C compiler that aws-lc and SQLite need"
need curl curl "to talk to the orchestrator and fetch through the nodes"
need python3 python3 "a small web server as the origin, and to read JSON"

stop_all
rm -rf "$dir"
mkdir -p "$dir/origin"
chmod 700 "$dir"
echo "Building (the first time takes some minutes) ..."
cargo build --quiet -p hy2 -p hy2-orchestrator -p hy2-agent

background() {
    local name=$1
    shift
    setsid nohup "$@" >"$dir/$name.out" 2>"$dir/$name.log" </dev/null &
    echo $! >"$dir/$name.pid"
}

fail() {
    echo "error: $1; the logs:" >&2
    tail -n 15 "$dir"/*.log >&2
    exit 1
}

wait_for() {
    local what=$1
    shift
    for _ in $(seq 300); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.1
    done
    fail "$what did not come up"
}

# field NAME: reads a JSON object on standard input
field() { python3 -c 'import json,sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

api=http://127.0.0.1:$rest/api/v1
call() {
    local method=$1 path=$2 body=${3:-}
    local args=(-fsS -X "$method" -H "Authorization: Bearer $token" -H 'Content-Type: application/json')
    [ -z "$body" ] || args+=(-d "$body")
    curl "${args[@]}" "$api$path"
}

cat >"$dir/orchestrator.yaml" <<END
database: sqlite:$dir/fleet.db
keyFile: $dir/master.key
agents:
  listen: 127.0.0.1:$grpc
  names: [localhost, 127.0.0.1]
api:
  listen: 127.0.0.1:$rest
public:
  listen: 127.0.0.1:$public
  url: http://127.0.0.1:$public/
END
background orchestrator "$target/debug/hy2-orchestrator" run -c "$dir/orchestrator.yaml"
wait_for "the orchestrator" curl -fsS "http://127.0.0.1:$rest/readyz"
admin=$(awk '$1 == "administrator" { print $2 }' "$dir/orchestrator.out")
secret=$(awk '$1 == "password" { print $2 }' "$dir/orchestrator.out")
[ -n "$secret" ] || fail "the orchestrator printed no first administrator"
token=$(curl -fsS -H 'Content-Type: application/json' -d "{\"username\":\"$admin\",\"password\":\"$secret\"}" \
    "$api/auth/login" | field access_token)

# The origin of this demonstration is on this machine, which a node refuses otherwise.
call PUT /configs/fleet/0 '{"body":{"allow_private_targets":true,"speed_test":true},"message":"development fleet"}' >/dev/null

for node in "${nodes[@]}"; do
    IFS='|' read -r name place port local_port socks <<<"$node"
    issued=$(call POST /enrolment-tokens "{\"label\":\"$name, $place\",\"tags\":[\"$name\"]}")
    cat >"$dir/agent-$name.yaml" <<END
dataDir: $dir/$name
masters: ["127.0.0.1:$grpc"]
name: $name
publicHost: 127.0.0.1
listenPort: $port
loopback: 127.0.0.1:$local_port
END
    field token <<<"$issued" | "$target/debug/hy2-agent" enrol -c "$dir/agent-$name.yaml" \
        --ca-pin "$(field ca_pin <<<"$issued")" 2>"$dir/enrol-$name.log" || fail "$name was not enrolled"
    background "agent-$name" "$target/debug/hy2-agent" run -c "$dir/agent-$name.yaml"
done

ids=$(call GET /nodes | python3 -c 'import json,sys; print(json.dumps([n["id"] for n in json.load(sys.stdin)["items"]]))')
user=$(call POST /users "{\"username\":\"alice\",\"note\":\"made by dev-start\",\"node_ids\":$ids}")
user_id=$(field id <<<"$user")
link=$(call GET "/users/$user_id/subscription" | field url)

head -c "${mebibytes}M" /dev/urandom >"$dir/origin/file"
background origin python3 -m http.server --bind 127.0.0.1 --directory "$dir/origin" "$origin"
wait_for "the origin" curl -fsS -o /dev/null "http://127.0.0.1:$origin/"

serving() {
    call GET /nodes | python3 -c 'import json,sys
nodes = json.load(sys.stdin)["items"]
ok = [n for n in nodes if n["observed_state"] == "online" and n["applied_rev"] == n["desired_rev"]]
sys.exit(len(ok) != 3)'
}
wait_for "the three nodes" serving

echo
echo "Carrying $mebibytes MiB through each node with the subscription of alice ..."
want=$(sha256sum <"$dir/origin/file")
curl -fsS "$link/plain" | grep '^hy' >"$dir/uris"
for node in "${nodes[@]}"; do
    IFS='|' read -r name place port local_port socks <<<"$node"
    uri=$(grep ":$port" "$dir/uris") || fail "the subscription does not name $name"
    cat >"$dir/client-$name.yaml" <<END
server: "$uri"
socks5:
  listen: 127.0.0.1:$socks
END
    background "client-$name" "$target/debug/hy2" client -c "$dir/client-$name.yaml"
    through=(curl -fsS -x "socks5h://127.0.0.1:$socks")
    wait_for "the client of $name" "${through[@]}" -o /dev/null "http://127.0.0.1:$origin/"
    got=$("${through[@]}" "http://127.0.0.1:$origin/file" | sha256sum)
    [ "$want" = "$got" ] || fail "the file arrived damaged through $name"
    printf '  %-8s (%s): checksum right\n' "$name" "$place"
done

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

cat <<END

The fleet is running.
  REST          http://127.0.0.1:$rest/api/v1   (document: /api/v1/openapi.json)
  gRPC          127.0.0.1:$grpc (agents), $(for n in "${nodes[@]}"; do cut -d'|' -f1,4 <<<"$n" | tr '|' ' '; done | paste -sd, -) (NodeManager)
  subscription  $link
  administrator $admin
  password      $secret
Try:
  curl -x socks5h://127.0.0.1:11081 http://127.0.0.1:$origin/
  curl $link/clash
  $target/debug/hy2-agent status -c $dir/agent-europe.yaml
Files and logs: $dir
Stop it with: make dev-stop
END
