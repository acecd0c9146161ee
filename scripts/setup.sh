#!/bin/sh
# Everything that the project needs on this machine: .venv with the locked dependencies, and Mosquitto where it is
# missing. Called by `make setup`; run it as often as you like, it ends at once when all is there. `scripts/setup.sh tools`
# adds what the tests of containers, Kubernetes, Grafana and parquet want (200 MB), of which nobody else needs anything.
#
#   PYTHON=…  the interpreter to use instead of the best one found      VENV=…  another folder than .venv
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
lock=requirements/development.lock

say() { printf '%s\n' "$*" >&2; }
give_up() { say "setup: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Debian keeps daemons in /usr/sbin, which is not on a user's PATH.
PATH=$PATH:/usr/sbin:/usr/local/sbin
export PATH

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif have sudo && sudo -n true 2>/dev/null; then sudo -n "$@"
    else return 1
    fi
}

apt_install() {
    set -- env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
        install --no-install-recommends "$@"
    as_root true || return 1
    # The lists of a fresh machine are empty or old: look for new ones only when the first try says so.
    as_root "$@" >/dev/null 2>&1 || { as_root apt-get -qq update && as_root "$@" >/dev/null; }
}

# install WHAT APT-PACKAGES APK-PACKAGES DNF-PACKAGES BREW-PACKAGES
install() {
    what=$1
    if have apt-get; then packages=$2 command="apt-get install -y $2"
    elif have apk; then packages=$3 command="apk add $3"
    elif have dnf; then packages=$4 command="dnf install -y $4"
    elif have brew; then packages=$5 command="brew install $5"
    else give_up "$what is missing and no package manager is known here: install it, then run make again"
    fi
    say "setup: installing $what"
    # shellcheck disable=SC2086  # the lists of packages are meant to be split
    case $command in
        apt-get*) apt_install $packages ;;
        brew*) $command >/dev/null ;;
        *) as_root $command >/dev/null ;;
    esac || give_up "$what is missing; run: $(rights)$command"
}

rights() { case $command in brew*) ;; *) [ "$(id -u)" = 0 ] || printf 'sudo ' ;; esac; }

# Found is not enough: a version manager leaves commands behind that fail. So each one is asked.
supported() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
can_make_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

find_python() {
    candidates=${PYTHON:-python3.13 python3.12 python3.11 python3}
    for candidate in $candidates; do
        if supported "$candidate" && can_make_venv "$candidate"; then python=$candidate && return; fi
    done
    for candidate in $candidates; do
        if supported "$candidate"; then python=$candidate && return; fi
    done
    give_up "no Python 3.11 or newer found; install one, or name it: make setup PYTHON=/path/to/python3"
}

make_venv() {
    find_python
    if ! can_make_venv "$python"; then
        # Debian and Ubuntu split venv and ensurepip off, into a package a version.
        version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
        install "Python's venv module" "$version-venv" python3 python3 python3
    fi
    say "setup: $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
}

install_locked() {
    # Moving the folder breaks a venv, hence the path in the stamp.
    stamp="$(pwd) $(cat "$lock" pyproject.toml | cksum)"
    if [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ] && "$venv/bin/python" -c '' 2>/dev/null; then return; fi
    case $(cat "$venv/stamp" 2>/dev/null) in
        "$(pwd) "*) "$venv/bin/python" -c '' 2>/dev/null || make_venv ;;
        *) make_venv ;;
    esac
    say "setup: installing the locked dependencies"
    set -- "$venv/bin/python" -m pip --quiet --disable-pip-version-check --no-input install
    # The lock is whole. Without --no-deps pip looks for itself at what has extras (coverage[toml]), and ends as soon as
    # there is a newer version of it than the locked one.
    "$@" --require-hashes --no-deps -r "$lock"
    # The build backend is among the locked ones, so nothing is fetched here.
    "$@" --no-deps --no-build-isolation -e .
    printf '%s\n' "$stamp" > "$venv/stamp"
}

install_tools() {
    stamp=$(cksum < requirements/tools.lock)
    if [ "$(cat "$venv/stamp-tools" 2>/dev/null)" = "$stamp" ]; then return; fi
    say "setup: installing the tools of the tests"
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check --no-input install \
        --require-hashes --no-deps -r requirements/tools.lock
    printf '%s\n' "$stamp" > "$venv/stamp-tools"
}

install_locked
case ${1:-} in
    '') ;;
    tools) install_tools ;;
    *) give_up "$1? Without a word, or with: tools" ;;
esac
have mosquitto || install Mosquitto "mosquitto mosquitto-clients" "mosquitto mosquitto-clients" mosquitto mosquitto
have mosquitto || give_up "mosquitto was installed, but is not on the PATH"
