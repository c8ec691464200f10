#!/usr/bin/env bash
# The README's first command: builds, starts a server and a client with a throw-away certificate,
# carries real traffic through SOCKS5 to a local origin, shows the figures, and leaves the pair running.
#   scripts/run.sh        start
#   scripts/run.sh stop   stop what an earlier start left running
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh

dir=${HY2_RUN_DIR:-${CARGO_TARGET_DIR:-target}/run}
server_port=${HY2_SERVER_PORT:-18443}
socks_port=${HY2_SOCKS_PORT:-11080}
http_port=${HY2_HTTP_PORT:-18080}
origin_port=${HY2_ORIGIN_PORT:-18000}
mebibytes=${HY2_MEBIBYTES:-256}

stop_one() {
    local file=$dir/$1.pid pid
    [ -f "$file" ] || return 0
    pid=$(cat "$file")
    rm -f "$file"
    # Only what is still ours: the number may have been given to another process.
    grep -qa "$2" "/proc/$pid/cmdline" 2>/dev/null || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 50); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
}

stop_all() {
    stop_one client "$dir/client.yaml"
    stop_one server "$dir/server.yaml"
    stop_one origin "http.server"
}

if [ "${1:-}" = stop ]; then
    stop_all
    echo "Stopped."
    exit 0
fi

need cargo rustc "the Rust toolchain, 1.95 or newer: https://rustup.rs"
need cc gcc "the C compiler that aws-lc needs"
need curl curl "to fetch through the tunnel"
need python3 python3 "a small web server as the origin"

stop_all
build hy2
hy2=${CARGO_TARGET_DIR:-target}/debug/hy2

mkdir -p "$dir/origin"
password=$(head -c 18 /dev/urandom | base64 | tr '+/' 'xy')
"$hy2" cert --host localhost --cert "$dir/cert.pem" --key "$dir/key.pem" --overwrite >/dev/null
cat >"$dir/server.yaml" <<END
listen: 127.0.0.1:$server_port
tls:
  cert: $dir/cert.pem
  key: $dir/key.pem
auth:
  type: password
  password: $password
speedTest: true
# The origin of this demonstration is on this machine, which a server refuses otherwise.
allowPrivateTargets: true
END
cat >"$dir/client.yaml" <<END
server: 127.0.0.1:$server_port
auth: $password
tls:
  sni: localhost
  ca: $dir/cert.pem
socks5:
  listen: 127.0.0.1:$socks_port
http:
  listen: 127.0.0.1:$http_port
END
chmod 600 "$dir"/*.yaml

background() {
    local name=$1
    shift
    setsid nohup "$@" >"$dir/$name.log" 2>&1 </dev/null &
    echo $! >"$dir/$name.pid"
}

wait_for() {
    local what=$1
    shift
    for _ in $(seq 100); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.1
    done
    echo "error: $what did not come up; its log:" >&2
    tail -n 20 "$dir"/*.log >&2
    exit 1
}

head -c "${mebibytes}M" /dev/urandom >"$dir/origin/file"
echo "It works: this page came through the tunnel." >"$dir/origin/index.html"
background origin python3 -m http.server --bind 127.0.0.1 --directory "$dir/origin" "$origin_port"
background server "$hy2" server -c "$dir/server.yaml"
background client "$hy2" client -c "$dir/client.yaml"
wait_for "the origin" curl -fsS "http://127.0.0.1:$origin_port/"
wait_for "the tunnel" curl -fsS -x "socks5h://127.0.0.1:$socks_port" "http://127.0.0.1:$origin_port/"

echo
echo "Fetching $mebibytes MiB through SOCKS5 -> hy2 client -> QUIC -> hy2 server -> origin ..."
speed=$(curl -fsS -x "socks5h://127.0.0.1:$socks_port" -o "$dir/fetched" -w '%{speed_download}' \
    "http://127.0.0.1:$origin_port/file")
want=$(sha256sum <"$dir/origin/file")
got=$(sha256sum <"$dir/fetched")
rm -f "$dir/fetched"
[ "$want" = "$got" ] || { echo "error: the file arrived damaged" >&2; exit 1; }
awk -v s="$speed" 'BEGIN { printf "  %.0f Mbit/s, checksum right (a development build)\n", s * 8 / 1e6 }'
echo
"$hy2" ping -c "$dir/client.yaml" "127.0.0.1:$origin_port" 2>&1 | sed 's/^/  /'
"$hy2" speedtest -c "$dir/client.yaml" --duration 2s 2>&1 | sed 's/^/  /'

cat <<END

The pair is running. Try:
  curl -x socks5h://127.0.0.1:$socks_port http://127.0.0.1:$origin_port/
  curl -x http://127.0.0.1:$http_port http://127.0.0.1:$origin_port/
  $hy2 share -c $dir/client.yaml --qr
Configuration: $dir/server.yaml, $dir/client.yaml; logs: $dir/*.log
Stop it with: make stop
END
