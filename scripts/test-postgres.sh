#!/usr/bin/env bash
# A throw-away PostgreSQL on loopback for tests and `make dev-full`, from Debian's package. Prints its address.
#   scripts/test-postgres.sh start DIR OWNER [durable]   stops and is removed when process OWNER ends,
#                                                        or by `stop` alone when OWNER is 0;
#                                                        durable: with fsync, for crash tests
#   scripts/test-postgres.sh crash DIR                   stops it without a checkpoint
#   scripts/test-postgres.sh end DIR                     stops it in order
#   scripts/test-postgres.sh resume DIR                  starts it again on the same port
#   scripts/test-postgres.sh stop DIR
set -euo pipefail

bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
if [ -z "$bin" ]; then
    echo "PostgreSQL is missing: apt-get install postgresql" >&2
    exit 1
fi

# initdb and postgres refuse to run as root.
as() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid=postgres --regid=postgres --init-groups \
            env -i PATH="$bin:/usr/bin:/bin" LC_ALL=C.UTF-8 HOME=/tmp "$@"
    else
        PATH="$bin:$PATH" LC_ALL=C.UTF-8 "$@"
    fi
}

run() {
    as pg_ctl -D "$dir/data" -w -t 60 -l "$dir/data/log" -o "$(cat "$dir/options")" start >/dev/null
}

command=$1
dir=$2
case "$command" in
start)
    owner=$3
    mkdir -p "$dir/data"
    chmod 755 "$dir"
    chmod 700 "$dir/data"
    if [ "$(id -u)" = 0 ]; then chown postgres "$dir/data"; fi
    as initdb -D "$dir/data" -U postgres -A trust -E UTF8 --no-sync --locale=C.UTF-8 >/dev/null
    fast="-c fsync=off -c synchronous_commit=off -c full_page_writes=off"
    if [ "${4:-}" = durable ]; then fast=""; fi
    for attempt in 1 2 3 4 5 6 7 8; do
        port=$((20000 + RANDOM % 20000))
        echo "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories=$dir/data -c max_connections=300 $fast" >"$dir/options"
        if run; then break; fi
        if [ "$attempt" = 8 ]; then
            cat "$dir/data/log" >&2
            exit 1
        fi
    done
    # The server outlives nobody: not a test that is killed either.
    if [ "$owner" != 0 ]; then
        setsid bash -c "while kill -0 $owner 2>/dev/null; do sleep 1; done; '$0' stop '$dir'" >/dev/null 2>&1 </dev/null &
    fi
    echo "postgres://postgres@127.0.0.1:$port/postgres"
    ;;
crash)
    as pg_ctl -D "$dir/data" -m immediate -w -t 60 stop >/dev/null
    ;;
end)
    as pg_ctl -D "$dir/data" -m fast -w -t 60 stop >/dev/null
    ;;
resume)
    run
    ;;
stop)
    as pg_ctl -D "$dir/data" -m immediate -w -t 60 stop >/dev/null || true
    rm -rf "$dir"
    ;;
*)
    echo "unknown command: $command" >&2
    exit 2
    ;;
esac
