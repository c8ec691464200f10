# Sourced by dev-start.sh and dev-fleet.sh: where the development fleet lives and how its parts are
# started, stopped and asked. Everything is under $dir and ends with `make dev-stop`.

target=${CARGO_TARGET_DIR:-target}
dir=${HY2_DEV_DIR:-$target/dev}
rest=${HY2_DEV_REST_PORT:-8081}
grpc=${HY2_DEV_GRPC_PORT:-50052}
public=${HY2_DEV_PUBLIC_PORT:-8080}
origin=${HY2_DEV_ORIGIN_PORT:-18000}
redis=${HY2_DEV_REDIS_PORT:-56379}
# The first node has these, each further one the next ones.
hysteria=${HY2_DEV_HYSTERIA_PORT:-18441}
manager=${HY2_DEV_MANAGER_PORT:-50061}
socks=${HY2_DEV_SOCKS_PORT:-11081}
mebibytes=${HY2_DEV_MEBIBYTES:-32}
# A fleet that runs says which ports it took.
# shellcheck source=/dev/null
[ ! -f "$dir/ports" ] || . "$dir/ports"
api=http://127.0.0.1:$rest/api/v1

background() {
    local name=$1
    shift
    setsid nohup "$@" >>"$dir/$name.out" 2>>"$dir/$name.log" </dev/null &
    echo $! >"$dir/$name.pid"
}

# ours PID: whether the number still belongs to a process of this fleet. Redis rewrites its
# command line; its folder tells.
ours() {
    grep -qa "$dir" "/proc/$1/cmdline" 2>/dev/null ||
        [[ "$(readlink "/proc/$1/cwd" 2>/dev/null)" = "$(realpath "$dir")"/* ]]
}

running() { [ -f "$dir/$1.pid" ] && ours "$(cat "$dir/$1.pid")"; }

stop_one() {
    local file=$dir/$1.pid pid
    [ -f "$file" ] || return 0
    pid=$(cat "$file")
    rm -f "$file"
    ours "$pid" || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 150); do
        # A process that has ended, or that waits for its parent to notice.
        grep -qs '^State:[[:space:]][^Z]' "/proc/$pid/status" || return 0
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
}

fail() {
    echo "error: $1" >&2
    if compgen -G "$dir/*.log" >/dev/null; then
        echo "The logs:" >&2
        tail -n 15 "$dir"/*.log >&2
    fi
    exit 1
}

wait_for() {
    local what=$1
    shift
    for _ in $(seq 600); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.1
    done
    fail "$what did not come up"
}

# field NAME: reads a JSON object on standard input
field() { python3 -c 'import json,sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

# call METHOD PATH [BODY]: as the token in $dir/token
call() {
    local args=(-fsS -X "$1" -H 'Content-Type: application/json')
    [ -z "${3:-}" ] || args+=(-d "$3")
    # The token by standard input: a command line can be read by everybody.
    printf 'header = "Authorization: Bearer %s"\n' "$(cat "$dir/token")" |
        curl "${args[@]}" -K - "$api$2"
}

start_orchestrator() {
    background orchestrator "$target/debug/hy2-orchestrator" run -c "$dir/orchestrator.yaml"
    wait_for "the orchestrator" curl -fsS "http://127.0.0.1:$rest/readyz"
}

start_redis() {
    mkdir -p "$dir/redis"
    background redis redis-server --port "$redis" --bind 127.0.0.1 --save '' --appendonly no \
        --dir "$dir/redis"
    wait_for "Redis" redis-cli -p "$redis" ping
}

# add_node NAME PLACE: enrols an agent on the next ports, starts it and notes it in $dir/nodes
add_node() {
    local name=$1 place=$2 issued last=-1
    [ ! -s "$dir/nodes" ] || last=$(tail -n 1 "$dir/nodes" | cut -d'|' -f6)
    local number=$((last + 1))
    local port=$((hysteria + number)) local_port=$((manager + number)) proxy=$((socks + number))
    issued=$(call POST /enrolment-tokens "{\"label\":\"$name, $place\",\"tags\":[\"$name\"]}")
    cat >"$dir/agent-$name.yaml" <<CONFIG
dataDir: $dir/$name
masters: ["127.0.0.1:$grpc"]
name: $name
publicHost: 127.0.0.1
listenPort: $port
loopback: 127.0.0.1:$local_port
CONFIG
    field token <<<"$issued" | "$target/debug/hy2-agent" enrol -c "$dir/agent-$name.yaml" \
        --ca-pin "$(field ca_pin <<<"$issued")" 2>"$dir/enrol-$name.log" || fail "$name was not enrolled"
    background "agent-$name" "$target/debug/hy2-agent" run -c "$dir/agent-$name.yaml"
    echo "$name|$place|$port|$local_port|$proxy|$number" >>"$dir/nodes"
}

# serving COUNT: whether the orchestrator sees so many nodes online with what it wants them to have
serving() {
    call GET '/nodes?size=500' | python3 -c 'import json,sys
nodes = json.load(sys.stdin)["items"]
ok = [n for n in nodes if n["observed_state"] == "online" and n["applied_rev"] == n["desired_rev"]]
sys.exit(len(ok) != int(sys.argv[1]))' "$1"
}

# node_ids [NAME]: numbers of all nodes, or of one, as a JSON array
node_ids() {
    call GET '/nodes?size=500' | python3 -c 'import json,sys
print(json.dumps([n["id"] for n in json.load(sys.stdin)["items"] if len(sys.argv) < 2 or n["name"] == sys.argv[1]]))' "$@"
}

stop_all() {
    local file names=()
    # Agents before the orchestrator, so that it takes their last batches; stores after it.
    for file in "$dir"/client-*.pid "$dir"/agent-*.pid; do
        [ ! -f "$file" ] || names+=("$(basename "$file" .pid)")
    done
    for name in "${names[@]}" orchestrator origin redis; do
        stop_one "$name"
    done
    if [ -f "$dir/postgres-dir" ]; then
        scripts/test-postgres.sh stop "$(cat "$dir/postgres-dir")"
        rm -f "$dir/postgres-dir"
    fi
}
