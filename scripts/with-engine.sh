#!/usr/bin/env bash
# Runs a command with a Docker engine: with the one that answers, else with one that is started for this command alone,
# by a script beside the project, and stopped behind it. Where neither is, it says so and does nothing.
#
#   scripts/with-engine.sh COMMAND…     ENGINE=…  the script: its `all` starts an engine in the folder D, its `down` ends it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
engine=${ENGINE:-../shared/engine/local-engine.sh}
venv=${VENV:-.venv}

answers() { command -v docker >/dev/null && docker "$@" >/dev/null 2>&1; }

clean_up() {
    [[ -z ${D:-} ]] || bash "$engine" down || echo "engine: it did not stop, see $D/dockerd.log" >&2
    rm -rf --one-file-system "$folder" || echo "engine: $folder is left over" >&2
}

folder=$(mktemp -d "${TMPDIR:-/tmp}/edge-engine.XXXXXX")
trap clean_up EXIT
if ! answers info; then
    if [[ ! -r $engine || $EUID != 0 ]]; then
        echo "engine: no Docker engine answers, and none can be started here: the containers are not tried"
        exit 0
    fi
    echo "engine: starting one, for this alone"
    export D=$folder/engine DOCKER_HOST=unix://$folder/engine/docker.sock
    bash "$engine" all >"$folder/log" 2>&1 || { cat "$folder/log" >&2; exit 1; }
fi
if ! answers compose version; then
    scripts/setup.sh tools
    export DOCKER_CONFIG=$folder/config
    mkdir -p "$DOCKER_CONFIG/cli-plugins"
    ln -s "$PWD/$venv/bin/docker-compose" "$DOCKER_CONFIG/cli-plugins/"
fi
"$@"
