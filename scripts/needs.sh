# Sourced by the other scripts: makes sure that a command is there.
# usage: need COMMAND DEBIAN-PACKAGE "what for"
#        need_postgres "what for"
#        build PROGRAM...   builds programs into target/debug; with HY2_BUILT=1 they are there already

need() {
    has "$1" && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "Installing $2 ($3) ..." >&2
        if [ -z "${HY2_APT_UPDATED:-}" ]; then
            apt-get update -qq >&2
            export HY2_APT_UPDATED=1
        fi
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >&2
        has "$1" && return 0
    fi
    echo "error: '$1' is missing ($3). Install the package '$2' and run this again." >&2
    return 1
}

# Debian keeps the server's commands out of PATH.
need_postgres() { need initdb postgresql "$1"; }

has() {
    command -v "$1" >/dev/null 2>&1 || { [ "$1" = initdb ] && compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }
}

build() {
    local program packages=()
    if [ -n "${HY2_BUILT:-}" ]; then
        for program; do
            [ -x "${CARGO_TARGET_DIR:-target}/debug/$program" ] || { echo "error: $program is not built" >&2; return 1; }
        done
        return 0
    fi
    for program; do
        packages+=(-p "$program")
    done
    echo "Building (the first time takes some minutes) ..."
    cargo build --quiet "${packages[@]}"
}
