#!/usr/bin/env bash
# Runs a command that needs a container engine: with_engine.sh COMMAND…
#
# The engine named by ENGINE, or a Docker that answers, is used as it is. Else, as root on Debian or Ubuntu, docker.io
# is installed and started for the length of the command, without a network bridge, and BASE_IMAGE names a stand-in for
# NVIDIA's base: this very distribution, made once by debootstrap (STANDIN=1 asks for it with any engine). Where neither
# can be, the command runs with ENGINE_MISSING, the reason. What is worth keeping (images, the build's cache with its
# wheels) stays in ${XDG_CACHE_HOME:-~/.cache}/gpu-job/engine.
set -euo pipefail

NAME=local/cuda-base:standin
state=${XDG_CACHE_HOME:-$HOME/.cache}/gpu-job/engine

main() {
  local candidate
  for candidate in ${ENGINE:-docker /usr/bin/docker}; do
    if works "$candidate"; then
      export ENGINE=$candidate
      [[ -z ${STANDIN-} ]] || standin
      exec "$@"
    fi
  done
  if [[ $EUID != 0 ]] || ! command -v apt-get >/dev/null; then
    ENGINE_MISSING='no container engine answers, and starting one takes root and apt-get' exec "$@"
  fi
  install_packages || ENGINE_MISSING='docker.io and debootstrap cannot be installed' exec "$@"
  mkdir -p "$state"
  exec 9>"$state/lock"
  flock 9 # two engines must not share their storage
  start || ENGINE_MISSING="dockerd does not start here: $(tail -n 1 "$state/dockerd.log")" exec "$@"
  export ENGINE=/usr/bin/docker
  standin
  "$@" 9>&-
}

# Answers, and can build: Docker's own client needs its buildx plug-in for that, Debian's 20.10 does not.
works() {
  command -v "$1" >/dev/null && "$1" info &>/dev/null &&
    { "$1" buildx version &>/dev/null || [[ $("$1" --version) != *"version "2[3-9]* ]]; }
}

install_packages() {
  command -v dockerd >/dev/null && [[ -x /usr/bin/docker ]] && command -v debootstrap >/dev/null && return
  {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends docker.io debootstrap
  } &>/dev/null
}

# Everything that lives only as long as the engine is in a new folder: a process id left over would stop the next start.
start() {
  run=$(mktemp -d)
  export DOCKER_HOST=unix://$run/docker.sock
  setsid dockerd --host "$DOCKER_HOST" --data-root "$state/data" --exec-root "$run/exec" --pidfile "$run/pid" \
    --bridge none --iptables=false --ip6tables=false --ip-forward=false </dev/null &>"$state/dockerd.log" 9>&- &
  dockerd=$!
  trap stop EXIT
  trap 'exit 143' TERM
  trap 'exit 130' INT
  for _ in {1..120}; do
    /usr/bin/docker info &>/dev/null && return
    kill -0 "$dockerd" 2>/dev/null || return 1
    sleep 0.5
  done
  return 1
}

# What no later run would use goes: layers without a name, and build cache over 20 GB, oldest first.
stop() {
  { /usr/bin/docker image prune --force && /usr/bin/docker builder prune --force --keep-storage 20GB; } &>/dev/null || true
  kill "$dockerd" 2>/dev/null && wait "$dockerd" 2>/dev/null || true
  rm -rf "$run"
}

# The running distribution, with its package sources and its own certificates, so that apt and pip work as they do here.
standin() {
  local root codename
  export BASE_IMAGE=$NAME
  "$ENGINE" image inspect "$NAME" &>/dev/null && return
  mkdir -p "$state"
  root=$(mktemp -d "$state/root.XXXXXX")
  codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  debootstrap --variant=minbase --include=ca-certificates "$codename" "$root" &>"$state/debootstrap.log"
  : >"$root/etc/apt/sources.list"
  cp -r /etc/apt/sources.list /etc/apt/sources.list.d "$root/etc/apt/" 2>/dev/null || true
  cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
  chroot "$root" update-ca-certificates &>/dev/null
  printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$root/etc/pip.conf"
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/log/*
  touch "$root/etc/hosts" "$root/etc/resolv.conf" # else each step makes and removes them, which shows in /etc's time
  tar -C "$root" --create . | "$ENGINE" import - "$NAME" >/dev/null
  rm -rf "$root"
}

main "$@"
