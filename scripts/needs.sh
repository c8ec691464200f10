# Sourced by the other scripts: makes sure that a command is there.
# usage: need COMMAND DEBIAN-PACKAGE "what for"

need() {
    command -v "$1" >/dev/null 2>&1 && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "Installing $2 ($3) ..." >&2
        if [ -z "${HY2_APT_UPDATED:-}" ]; then
            apt-get update -qq >&2
            export HY2_APT_UPDATED=1
        fi
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >&2
        command -v "$1" >/dev/null 2>&1 && return 0
    fi
    echo "error: '$1' is missing ($3). Install the package '$2' and run this again." >&2
    return 1
}
