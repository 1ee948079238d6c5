#!/usr/bin/env bash
# The image, by docker or podman: docker/image.sh build|run|shell|push|scan|size. `make image`, `make run` and so on
# call it; docker/README.md has every variable. The exit code of `run` and `shell` is that of the container.
set -euo pipefail

main() {
  local verb=${1-}
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  case $verb in
    build | run | shell | push | scan | size) ;;
    *) fail 2 'usage: docker/image.sh build|run|shell|push|scan|size' ;;
  esac
  find_engine
  version=$(git -C "$here" describe --tags --always --dirty 2>/dev/null || echo unversioned)
  variant=${VARIANT:-cuda13}
  name=${IMAGE:-gpu-job:$version$([[ $variant == cuda13 ]] || echo "-$variant")}
  "$verb"
}

fail() {
  echo "make: $2" >&2
  exit "$1"
}

# Sets engine and kind (docker or podman).
find_engine() {
  local candidate
  engine=
  for candidate in ${ENGINE:-docker podman}; do
    if command -v "$candidate" >/dev/null && "$candidate" info &>/dev/null; then
      engine=$candidate
      break
    fi
  done
  [[ -n $engine ]] || fail 2 "no container engine answers (tried: ${ENGINE:-docker podman}); start Docker, or install \
podman, or name yours with ENGINE=/path/to/docker; without containers: make demo"
  kind=docker
  [[ $("$engine" --version) != podman* ]] || kind=podman
}

built() {
  "$engine" image inspect "$name" &>/dev/null || fail 2 "there is no image $name; build it with: make image"
}

# --- build ---------------------------------------------------------------------------------------------------------

build() {
  local flags=() base requirements digest revision
  case $variant in
    cuda13) requirements=requirements.txt base=$(sed -n 's/^ARG BASE_IMAGE=//p' "$here/docker/Dockerfile") ;;
    # P100 and V100 as well; its newest GPU is the H100
    cu12) requirements=docker/requirements-cu12.txt base=$CUDA12_BASE ;;
    *) requirements=${REQUIREMENTS:?VARIANT is cuda13, cu12, or any other word together with REQUIREMENTS=LOCKFILE} ;;
  esac
  requirements=${REQUIREMENTS:-$requirements} base=${BASE_IMAGE:-${base:?with a VARIANT of your own, name BASE_IMAGE}}
  can_build
  digest=$(base_digest "$base")
  revision=$(git -C "$here" describe --always --abbrev=40 --dirty --match= 2>/dev/null || echo unknown)
  flags+=(--tag "$name" --file "$here/docker/Dockerfile" --network host)
  flags+=(--build-arg BASE_IMAGE="$base" --build-arg BASE_DIGEST="$digest" --build-arg REQUIREMENTS="$requirements")
  flags+=(--build-arg VERSION="$version" --build-arg REVISION="$revision" --build-arg SOURCE="$(source_url)")
  flags+=(--build-arg CREATED="$(git -C "$here" log -1 --format=%cI 2>/dev/null || echo unknown)")
  [[ -z ${INDEX-} ]] || flags+=(--build-arg INDEX="$INDEX")
  [[ -z ${NO_CACHE-} ]] || flags+=(--no-cache)
  if [[ $kind == podman ]]; then
    flags+=(--format docker --layers) # the OCI format has no HEALTHCHECK
  elif [[ ! -t 2 ]]; then
    flags+=(--progress plain)
  fi
  DOCKER_BUILDKIT=1 "$engine" build "${flags[@]}" "$here" >&2
  echo "Built $name on $base"
  if [[ $base != *@sha256:* && $digest != unknown ]]; then
    echo "Its base is not pinned; what was used: BASE_IMAGE=${base}@${digest}"
  fi
}

CUDA12_BASE=nvidia/cuda:12.6.3-base-ubuntu24.04@sha256:c87e78933f4c16e3272123bf2f75537306596d0fbaa395a29696a22786e5ee0e

# Docker's client from version 23 on builds by a plug-in that some packages leave out.
can_build() {
  [[ $kind == podman ]] || "$engine" buildx version &>/dev/null && return
  [[ $("$engine" --version) == *"version "2[3-9]* ]] || return 0
  fail 2 "$engine has no buildx and cannot build; install docker-buildx-plugin, or name another with ENGINE="
}

# The digest of the base: that of its name, else that of the image under the name, fetched if need be.
base_digest() {
  if [[ $1 == *@sha256:* ]]; then
    echo "${1#*@}"
    return
  fi
  "$engine" image inspect "$1" &>/dev/null || "$engine" pull --quiet "$1" >/dev/null
  "$engine" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$1" | sed -n 's/.*@//p' | head -n 1 | grep . || echo unknown
}

# The address of the repository without the name and password that may stand in it.
source_url() {
  git -C "$here" remote get-url origin 2>/dev/null | grep -E '^(https?|ssh)://|^git@' | sed -E 's#//[^/@]*@#//#' || echo unknown
}

# --- run -----------------------------------------------------------------------------------------------------------

run() {
  built
  local spec=${SPEC:-$here/job/spec/samples/digits.yaml} data=${DATA:-data} out=${OUT:-runs} flags=() job=()
  [[ -f $spec ]] || fail 2 "there is no spec $spec; SPEC= names the file"
  folder "$data" DATA
  folder "$out" OUT
  common_flags
  flags+=(--volume "$(realpath "$spec"):/work/$(basename "$spec"):ro")
  flags+=(--volume "$(realpath "$data"):/work/data" --volume "$(realpath "$out"):/work/runs")
  flags+=(--env JOB_IMAGE_DIGEST="$("$engine" image inspect --format '{{.Id}}' "$name")")
  read -ra job <<<"${ARGS-}"
  exec "$engine" run "${flags[@]}" "$name" run "$(basename "$spec")" "${job[@]}"
}

shell() {
  built
  local flags=()
  common_flags
  exec "$engine" run "${flags[@]}" --volume "$PWD:/work/here" --entrypoint bash "$name"
}

# What every container gets: no rights it does not need, a writable /tmp and /work, the caller's user, GPU and keys.
common_flags() {
  local user=${RUN_AS:-$(id -u):$(id -g)} variable
  flags+=(--rm --read-only --cap-drop ALL --security-opt no-new-privileges --user "$user")
  flags+=(--tmpfs "/tmp:rw,exec,mode=1777" --tmpfs "/work:rw,mode=1777") # exec: torch.compile loads what it built
  flags+=(--shm-size "${SHM:-8g}" --stop-timeout "${STOP_TIMEOUT:-110}")
  [[ ! -t 0 || ! -t 1 ]] || flags+=(--interactive --tty)
  [[ $kind != podman || ${user%%:*} == 0 || $EUID == 0 ]] || flags+=(--userns keep-id)
  [[ ! -e /sys/fs/selinux/enforce ]] || flags+=(--security-opt label=disable) # the caller's folders keep their labels
  for variable in $(compgen -e | grep -E '^(OCI|JOB)_' | grep -vE '^JOB_(DATA_ROOT|COMMIT|IMAGE_DIGEST)$'); do
    flags+=(--env "$variable") # the value does not show in the list of processes
  done
  flags+=(--env JOB_DATA_ROOT=/work/data)
  if [[ -d ${HOME-}/.oci ]]; then # under its own path: the configuration names its key by it
    flags+=(--volume "$HOME/.oci:$HOME/.oci:ro" --env HOME="$HOME")
  fi
  gpu_flags
  local extra=()
  read -ra extra <<<"${RUN_FLAGS-}"
  flags+=("${extra[@]}")
}

# GPU=none, GPU=all or a device such as GPU=1; without it: all, if the engine can hand them on.
gpu_flags() {
  local wish=${GPU-auto}
  if [[ $wish == auto ]]; then
    wish=none
    if [[ ! -e ${NVIDIA_PROC:-/proc/driver/nvidia/version} ]]; then
      echo "No NVIDIA driver here: running on CPU" >&2
    elif gpu_engine; then
      wish=all
    else
      echo "A GPU is here, but $kind cannot hand it on (NVIDIA Container Toolkit is missing): running on CPU" >&2
    fi
  fi
  [[ $wish != none ]] || return 0
  if [[ $kind == podman ]]; then
    flags+=(--device "nvidia.com/gpu=$wish")
  elif [[ $wish == all ]]; then
    flags+=(--gpus all)
  else
    flags+=(--gpus "\"device=$wish\"")
  fi
}

gpu_engine() {
  if [[ $kind == podman ]]; then
    compgen -G '/etc/cdi/*nvidia*' >/dev/null || compgen -G '/var/run/cdi/*nvidia*' >/dev/null
  else
    command -v nvidia-container-runtime >/dev/null
  fi
}

# Made here, by the caller: the engine would make it as root.
folder() {
  mkdir -p "$1" 2>/dev/null || fail 2 "$2=$1 cannot be made; name a folder that you may write"
}

# --- look and pass on ----------------------------------------------------------------------------------------------

push() {
  built
  local to=${TO:?name the repository, such as TO=fra.ocir.io/NAMESPACE/gpu-job; docker/README.md says how to log in}
  "$engine" tag "$name" "$to:${name##*:}"
  "$engine" push "$to:${name##*:}"
  echo "Pushed; in a spec or a unit, name it by its content:"
  "$engine" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$to:${name##*:}" | grep -F "$to@"
}

scan() {
  built
  local tool archive
  for tool in trivy grype syft; do
    command -v "$tool" >/dev/null && break
    tool=
  done
  [[ -n $tool ]] || fail 2 "scanning needs trivy, grype or syft on PATH, and none is there; each is one package or download"
  archive=$(mktemp -d)
  trap 'rm -rf "$archive"' EXIT
  "$engine" save --output "$archive/image.tar" "$name"
  case $tool in
    trivy)
      trivy image --input "$archive/image.tar" --format cyclonedx --output sbom.cdx.json
      trivy image --input "$archive/image.tar" --severity HIGH,CRITICAL --ignore-unfixed
      ;;
    grype)
      ! command -v syft >/dev/null || syft scan "docker-archive:$archive/image.tar" --output cyclonedx-json=sbom.cdx.json
      grype "docker-archive:$archive/image.tar" --only-fixed
      ;;
    syft)
      syft scan "docker-archive:$archive/image.tar" --output cyclonedx-json=sbom.cdx.json
      echo "sbom.cdx.json lists what is in the image; for vulnerabilities install grype or trivy"
      ;;
  esac
}

size() {
  built
  "$engine" history --human=false --no-trunc --format '{{.Size}} {{.CreatedBy}}' "$name" | awk '
    { bytes = $1; $1 = ""; all += bytes }
    /COPY \/layers\/torch/ { torch = bytes; print_line("torch, CUDA, what torch alone asks for", bytes); next }
    /COPY \/layers\/rest/ { ours += bytes; print_line("other packages", bytes); next }
    /COPY \/layers\/job/ { ours += bytes; print_line("the job", bytes); next }
    /touch \/tmp\/began.* g\+\+/ { compiler = bytes; print_line("what torch.compile calls: compiler, headers", bytes); next }
    /touch \/tmp\/began/ { ours += bytes; print_line("Python, tini", bytes); next }
    { base += bytes }
    function print_line(what, bytes) { printf "%8.1f MiB  %s\n", bytes / 1048576, what }
    END {
      print_line("the base", base)
      print_line("together", all)
      print_line("added to the base, without torch, CUDA and what they alone need", ours)
      print_line("and with the compiler", ours + compiler)
    }'
  echo "Largest packages, MiB:"
  "$engine" run --rm --network none --entrypoint bash "$name" -c 'cd /opt/venv/lib/python3*/site-packages && du -sm -- * |
    sort -rn | head -n 16' | sed 's/^/  /'
}

main "$@"
