#!/usr/bin/env bash
# Runs every command of docs/operations.md and docs/security.md, in their order, on a fleet of its own.
# Its host is this one with copies in place of /etc, /root, /usr/local/bin and /var/lib: its own mounts,
# processes and network, so nothing is left behind and no port is taken. As root.
#   scripts/test-docs.sh [-v]      -v: shows the commands and what they print
# A block ```sh is run; ```yaml and others are not commands. <!-- new host --> in a document takes
# the orchestrator's host away and leaves /root, where what was kept apart is.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh

if [ "${1:-}" != --inside ]; then
    need jq jq "the documents read JSON with it"
    need unshare util-linux "a host of its own for the commands"
    need ip iproute2 "a network of its own for the commands"
    need useradd passwd "the documents make a user"
    [ "$(id -u)" = 0 ] || {
        echo "error: the commands of the documents are for root; run this as root." >&2
        exit 1
    }
    build hy2-orchestrator hy2-agent hy2ctl
    host=$(mktemp -d)
    trap 'rmdir "$host"' EXIT
    unshare --mount --net --pid --uts --ipc --fork --mount-proc "$0" --inside "$host" "${1:-}"
    exit
fi

repository=$PWD
binaries=$(realpath "${CARGO_TARGET_DIR:-target}")/debug
host=$2
mount -t tmpfs -o mode=755 tmpfs "$host"
for copied in etc root usr/local/bin var/lib run; do
    mkdir -p "$host/$copied"
done
cp -a /etc/. "$host/etc/"
mkdir -p "$host/etc/systemd/system" "$host/repository/target/release"
for mounted in etc root usr/local/bin var/lib run; do
    mount --bind "$host/$mounted" "/$mounted"
done
ip link set lo up
echo "127.0.0.1 localhost orchestrator.example.org frankfurt-1.example.org" >/etc/hosts

# The repository as the documents see it: its files, and the programs where a release build has them.
for file in deployments docs; do
    ln -s "$repository/$file" "$host/repository/$file"
done
for program in hy2-orchestrator hy2-agent hy2ctl; do
    [ ! -x "$binaries/$program" ] || ln -s "$binaries/$program" "$host/repository/target/release/$program"
done
cd "$host/repository"

# Stands in for the service manager: runs a unit's command as its user, waits until it says that it is
# ready, and stops it as the manager does.
mkdir -p /run/units
cat >/usr/local/bin/systemctl <<'SYSTEMCTL'
#!/usr/bin/env bash
set -euo pipefail
setting() { sed -n "s/^$1=//p" "/etc/systemd/system/$unit.service" | tail -n 1; }
start() {
    [ "$(setting Type)" = notify ]
    python3 - "$(setting User)" "/run/units/$unit" $(setting ExecStart) <<'PYTHON'
import os, pwd, socket, subprocess, sys
user, place, command = pwd.getpwnam(sys.argv[1]), sys.argv[2], sys.argv[3:]
path = place + ".notify"
if os.path.exists(path): os.unlink(path)
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(path); os.chmod(path, 0o666); manager.settimeout(120)
log = open(place + ".log", "ab")
process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", umask=0o077,
    user=user.pw_uid, group=user.pw_gid, extra_groups=[], start_new_session=True, env={"PATH": "/usr/local/bin:/usr/bin:/bin", "NOTIFY_SOCKET": path})
open(place + ".pid", "w").write(str(process.pid))
while True:
    try:
        if b"READY=1" in manager.recv(1024): break
    except socket.timeout:
        sys.exit("not ready in time:\n" + open(place + ".log").read())
PYTHON
}
stop() {
    local pid
    [ -f "/run/units/$unit.pid" ] || return 0
    pid=$(cat "/run/units/$unit.pid")
    rm "/run/units/$unit.pid"
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 300); do
        grep -qs '^State:[[:space:]][^Z]' "/proc/$pid/status" || return 0
        sleep 0.1
    done
    echo "$unit does not stop" >&2
    exit 1
}
verb=$1
shift
for unit; do
    [ "$unit" != --now ] || continue
    [ -f "/etc/systemd/system/$unit.service" ] || { echo "no unit $unit" >&2; exit 1; }
    case "$verb" in
    start | enable) start ;;
    stop | disable) stop ;;
    restart) stop && start ;;
    *) echo "not known here: systemctl $verb" >&2; exit 1 ;;
    esac
done
SYSTEMCTL
chmod +x /usr/local/bin/systemctl

# The node is on another host and stays.
new_host() {
    systemctl stop hy2-orchestrator
    rm -rf /var/lib/hy2 /etc/hy2/orchestrator.yaml /usr/local/bin/hy2-orchestrator \
        /etc/systemd/system/hy2-orchestrator.service
}

# One line per block: DOCUMENT LINE FILE, the commands in FILE; or DOCUMENT LINE new-host.
blocks=$host/blocks
mkdir "$blocks"
for document in operations security; do
    [ -f "docs/$document.md" ] || continue
    awk -v document="$document" -v blocks="$blocks" '
        /^<!-- new host -->$/ { print document, NR, "new-host" }
        /^```sh$/ { inside = 1; file = blocks "/" document "-" NR; print document, NR, file; next }
        /^```/ { inside = 0 }
        inside { print > file }' "docs/$document.md"
done >"$host/plan"
grep -q . "$host/plan" || { echo "error: the documents hold no commands" >&2; exit 1; }
# /tmp is the real host's: what a command left there would stop the next run.
if grep -n '/tmp/' "$blocks"/*; then
    echo "error: a command of the documents uses /tmp" >&2
    exit 1
fi

# One shell for all, as an operator has one: what a block sets, the next one knows.
{
    echo 'set -euo pipefail'
    while read -r document line file; do
        echo "echo '-- docs/$document.md:$line' >&4"
        [ "$file" = new-host ] && echo new_host || echo ". '$file'"
    done <"$host/plan"
} >"$host/all"
export -f new_host
if [ "${3:-}" = -v ]; then
    bash -x "$host/all" 4>&1
elif ! bash "$host/all" >"$host/output" 2>&1 4>"$host/reached"; then
    echo "error: a command fails in the block of $(tail -n 1 "$host/reached" | cut -c4-); what it and the daemons said:" >&2
    tail -n 20 "$host/output" /run/units/*.log >&2
    exit 1
fi
systemctl stop hy2-agent hy2-orchestrator
echo "$(grep -vc new-host "$host/plan") blocks of commands in docs/operations.md and docs/security.md run."
