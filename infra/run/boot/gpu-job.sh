#!/usr/bin/env bash
# The instance's side of a run: prepares the machine, runs the container, tells of it, and always ends the instance.
#   arm       first boot, before anything else: the watchdog, and what runs on each later boot
#   boot      each boot: checks the GPU, fetches engine, image and spec, starts gpu-job.service
#   run       gpu-job.service: the container; its exit code is the unit's
#   stopped   after it: again on 75, else the end
#   beat      every 30 s: state and logs to the bucket, limits of time, a wish to cancel
#   deadline  the watchdog: the end, whatever the rest does
#   end       stop the job in order, ship the logs, terminate, and again until it is done
set -euo pipefail

ETC=${GPU_JOB_ETC:-/etc/gpu-job}
STATE=${GPU_JOB_STATE:-/run/gpu-job}   # of this boot
KEEP=${GPU_JOB_KEEP:-/var/lib/gpu-job} # of this instance
LOG=${GPU_JOB_LOG:-/var/log/gpu-job}
LIB=${GPU_JOB_LIB:-/usr/local/lib/gpu-job}
DEV=${GPU_JOB_DEV:-/dev}
UNITS=${GPU_JOB_UNITS:-/etc/systemd/system}
export GPU_JOB_STATE=$STATE
mkdir -p "$STATE" "$KEEP/work" "$LOG"
chmod 700 "$STATE"
set -a
# shellcheck source=/dev/null
. "$ETC/env"
set +a
DEADLINE=$(date -d "$EXPIRES" +%s)
LAUNCH=launches/$RUN_ID
MINE=$LAUNCH/node-$NODE_RANK

oci() {
  local python
  for python in python3 /usr/libexec/platform-python; do
    if command -v "$python" >/dev/null; then
      "$python" -I "$LIB/oci.py" "$@"
      return
    fi
  done
  return 127
}

engine() { command -v docker || command -v podman; }
now() { date +%s; }
say() { echo "$(date -u +%FT%TZ) $*" | tee -a "$LOG/boot.log"; }
phase() { echo "$1" >"$STATE/phase"; say "phase: $1"; }
because() { [[ -s $STATE/reason ]] || echo "$*" >"$STATE/reason"; } # the first reason is the cause
recall() { cat "$1" 2>/dev/null || echo "${2-}"; }

arm() {
  phase armed
  now >"$KEEP/armed"
  local at
  at=$(date -u -d "@$DEADLINE" '+%F %T UTC')
  printf '[Unit]\nDescription=The run must be gone\n[Timer]\nOnCalendar=%s\nOnBootSec=%s\nPersistent=true\nAccuracySec=1s\n[Install]\nWantedBy=timers.target\n' \
    "$at" "$MAX_DURATION" >"$UNITS/gpu-job-deadline.timer"
  systemctl daemon-reload
  systemctl enable --now gpu-job-deadline.timer
  systemctl enable --now gpu-job-beat.timer
  systemctl enable gpu-job-boot.service
  systemctl start --no-block gpu-job-boot.service
}

boot() {
  trap '[[ $? == 0 ]] || because "boot failed in phase $(recall "$STATE/phase")"' EXIT # the unit's OnFailure does the rest
  now >"$STATE/booted"
  phase prepare
  mask_updates
  [[ ! -x /usr/libexec/oci-growfs ]] || /usr/libexec/oci-growfs -y >>"$LOG/boot.log" 2>&1
  scratch || say "no blank local NVMe: /work is on the boot volume"
  if ((NODES > 1)) && command -v firewall-cmd >/dev/null; then firewall-cmd --quiet --zone=trusted --add-source="$SUBNET_CIDR"; fi
  phase gpu
  if ((GPUS > 0)); then check_gpus; fi
  ((RDMA == 0)) || retry test -d "$DEV/infiniband" || refuse "RDMA is paid for, and the machine's image has no driver for it"
  phase engine
  engine >/dev/null || retry dnf install -y podman >>"$LOG/boot.log" 2>&1
  if ((GPUS > 0)); then install_toolkit; fi
  phase pull
  retry pull
  phase start
  gate
  oci get "$LAUNCH/spec.yaml" "$KEEP/spec.yaml"
  own_work
  systemctl start --no-block gpu-job.service
}

retry() { "$@" || { sleep 10; "$@"; } || { sleep 30; "$@"; }; }
refuse() { because "$*"; say "refused: $*"; return 1; }

mask_updates() { # a new driver under a running container breaks it
  local unit
  for unit in dnf-automatic.timer dnf-automatic-install.timer dnf-makecache.timer unattended-upgrades.service apt-daily-upgrade.timer; do
    systemctl mask --now "$unit" >/dev/null 2>&1 || true
  done
}

scratch() { # /work on the first local NVMe that is blank, or that is ours since an earlier boot; no other disk is touched
  local disk
  if mountpoint -q "$KEEP/work"; then return; fi
  disk=$(blkid -L gpujob) || { disk=$(blank) && mkfs.xfs -q -L gpujob "$disk" >>"$LOG/boot.log" 2>&1; } || return
  mount -o noatime "$disk" "$KEEP/work" >>"$LOG/boot.log" 2>&1 && say "/work is on $disk"
}

blank() { # neither partitions, nor holders, nor a signature of anything
  local disk code
  for disk in "$DEV"/nvme*n1; do
    [[ -e $disk && $(lsblk -nro NAME "$disk") == "${disk##*/}" ]] || continue
    code=0
    blkid -p "$disk" >/dev/null 2>&1 || code=$?
    if ((code == 2)); then echo "$disk"; return; fi
  done
  return 1
}

check_gpus() { # before an hour is paid for
  local found driver fault
  found=$(nvidia-smi --query-gpu=driver_version,ecc.errors.uncorrected.volatile.total,clocks_throttle_reasons.hw_slowdown,clocks_throttle_reasons.hw_thermal_slowdown,name --format=csv,noheader) ||
    refuse "nvidia-smi fails: no driver, or a GPU fell off the bus"
  say "GPUs: $found"
  (($(wc -l <<<"$found") == GPUS)) || refuse "$(wc -l <<<"$found") GPUs where the shape has $GPUS"
  driver=${found%%.*}
  ((driver >= MIN_DRIVER)) || refuse "driver branch $driver, and the image's CUDA needs $MIN_DRIVER"
  fault=$(awk -F', *' '$2 ~ /^[1-9]/ {print "uncorrected ECC errors: " $2} $3 == "Active" || $4 == "Active" {print "throttled by the hardware"}' <<<"$found")
  [[ -z $fault ]] || refuse "a GPU is unhealthy: ${fault//$'\n'/, }"
}

install_toolkit() {
  local package=$KEEP/${TOOLKIT##*/}
  if ! command -v nvidia-ctk >/dev/null; then
    [[ -n $TOOLKIT ]] || refuse "the image lacks nvidia-ctk, and no toolkit package is given"
    case $TOOLKIT in
      https://*) retry curl -fsSL --max-time 300 -o "$package" "$TOOLKIT" ;;
      *) retry oci get "$TOOLKIT" "$package" ;;
    esac
    sha256sum --check --quiet <<<"$TOOLKIT_SHA256  $package" || refuse "the toolkit package is not the one that was pinned"
    retry dnf install -y --disablerepo='*' "$package" >>"$LOG/boot.log" 2>&1
  fi
  [[ $(engine) == *docker ]] || nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml >>"$LOG/boot.log" 2>&1
}

gpu_flags() {
  if ((RDMA > 0)); then echo --device=/dev/infiniband; fi
  if ((GPUS == 0)); then return; fi
  if [[ $(engine) == *docker ]]; then echo --gpus=all; else echo --device=nvidia.com/gpu=all --security-opt=label=disable; fi
}

pull() { # the login lasts for the pull and stays nowhere
  local place code=0
  place=$(mktemp -d)
  export DOCKER_CONFIG=$place REGISTRY_AUTH_FILE=$place/auth.json
  oci token "${IMAGE%%/*}" | "$(engine)" login --username BEARER_TOKEN --password-stdin "${IMAGE%%/*}" >>"$LOG/boot.log" 2>&1 &&
    timeout "$BOOT_TIMEOUT" "$(engine)" pull "$IMAGE" >>"$LOG/boot.log" 2>&1 || code=$?
  rm -rf "$place"
  unset DOCKER_CONFIG REGISTRY_AUTH_FILE
  return "$code"
}

gate() { # the driver as the container sees it
  if ((GPUS == 0)); then return; fi
  # shellcheck disable=SC2046 # flags are words
  "$(engine)" run --rm $(gpu_flags) --entrypoint nvidia-smi "$IMAGE" -L >>"$LOG/boot.log" 2>&1 ||
    refuse "nvidia-smi fails inside the container"
}

own_work() {
  local user
  user=$("$(engine)" image inspect --format '{{.Config.User}}' "$IMAGE")
  chown -R "${user:-0}" "$KEEP/work"
  chmod 644 "$KEEP/spec.yaml"
}

contain() { # sets `contained`: the command that runs the image, closed but for the run's folder; FLAG…
  contained=("$(engine)" run --rm --name gpu-job --pull=never --network=host --read-only
    "--tmpfs=/tmp:rw,nosuid,nodev" --shm-size="$SHM_GB"g --ulimit=memlock=-1 --ulimit=stack=67108864
    --cap-drop=ALL --security-opt=no-new-privileges --stop-timeout="$STOP_GRACE" "$@"
    --volume="$KEEP/work:/work" --volume="$KEEP/spec.yaml:/spec.yaml:ro" --workdir=/work
    --env-file="$ETC/job.env" --env="JOB_LAUNCHED=$(date -d "$LAUNCHED" +%s)" --env="JOB_DEADLINE=$((DEADLINE - 2 * STOP_GRACE))"
    "$IMAGE")
}

run() {
  local words contained
  mapfile -t words <"$ETC/command"
  phase running
  [[ -s $STATE/started ]] || now >"$STATE/started"
  exec >>"$LOG/job.log" 2>&1
  "$(engine)" rm -f gpu-job >/dev/null 2>&1 || true
  # shellcheck disable=SC2046 # flags are words
  contain $(gpu_flags)
  exec "${contained[@]}" "${words[@]}"
}

bring_up() { # a container that was killed, for want of memory for example, has left its last checkpoint here
  local folder contained code
  code=$(recall "$STATE/exit" 0)
  ((NODE_RANK == 0)) || return 0
  case $code in 0 | 1 | 2 | 3 | 4 | 75) return 0 ;; esac # the job has done what it could
  for folder in "$KEEP"/work/*/"$RUN_ID"; do
    [[ -d $folder/.outbox ]] || continue
    say "bringing up what the job left"
    "$(engine)" rm -f gpu-job >/dev/null 2>&1 || true
    contain
    timeout "$STOP_GRACE" "${contained[@]}" upload "/work/${folder#"$KEEP/work/"}" >>"$LOG/job.log" 2>&1 || true
  done
}

stopped() { # systemd says how in EXIT_STATUS, and starts gpu-job.service again on 75 by itself
  local tries
  echo "${EXIT_STATUS:-unknown}" >"$STATE/exit"
  tries=$(recall "$KEEP/restarts" 0)
  say "the job left with ${EXIT_STATUS:-unknown}"
  timeout 60 "$0" report || true
  if [[ ${EXIT_STATUS:-} == 75 && ! -s $STATE/reason ]] && ((tries < MAX_RESTARTS && DEADLINE - $(now) > 2 * STOP_GRACE)); then
    echo $((tries + 1)) >"$KEEP/restarts"
    return
  fi
  if [[ ${EXIT_STATUS:-} == 0 ]]; then because complete; else because "the job left with ${EXIT_STATUS:-unknown}"; fi
  systemctl start --no-block gpu-job-end.service
}

beat() {
  local since reached=1
  timeout 60 "$0" report || { reached=0; say "the bucket or the log is out of reach; the run goes on"; }
  if [[ -s $STATE/reason ]]; then return; fi
  since=$(recall "$STATE/booted" "$(recall "$KEEP/armed" "$(now)")")
  if [[ ! -s $STATE/started ]] && (($(now) - since > BOOT_TIMEOUT)); then
    because "the job did not start within $BOOT_TIMEOUT s; phase $(recall "$STATE/phase")"
  elif [[ -s $STATE/started ]] && ! stepped && ((reached || NODE_RANK == 0)) &&
    (($(now) - $(<"$STATE/started") > FIRST_STEP_TIMEOUT)); then
    because "no training step within $FIRST_STEP_TIMEOUT s of the start"
  elif timeout 60 "$0" wished 2>/dev/null; then
    because cancelled
  elif ((NODES > 1)) && timeout 60 "$0" others 2>/dev/null; then
    because "ended with $(<"$STATE/others")"
  else
    return 0
  fi
  systemctl start --no-block gpu-job-end.service
}

wished() { oci exists "$LAUNCH/cancel"; }

# Nodes end together: the first in any case, another when something went wrong, says so under the time of this launch.
over() { oci put "$STATE/over" "$LAUNCH/over-$LAUNCHED"; }
others() { oci get "$LAUNCH/over-$LAUNCHED" "$STATE/others"; }
first() { oci get "$LAUNCH/node-0/status.json" "$STATE/first"; }

silent() { # nothing was heard of the first node for four beats, or ever
  local told
  timeout 60 "$0" first 2>/dev/null || return 0
  told=$(sed -nE 's/.*"time": ([0-9]+),.*/\1/p' "$STATE/first")
  ((${told:-0} < $(now) - 120))
}

stepped() { # the job's heartbeat, which the first node alone keeps, speaks of training or of what follows it
  [[ -e $STATE/stepped ]] && return
  if ((NODE_RANK > 0)); then
    timeout 60 "$0" first 2>/dev/null && grep -q "\"stepped\": true, \"launched\": \"$LAUNCHED\"" "$STATE/first" || return 1
  else
    grep -qE '"(phase|status)": *"(train|evaluate|report|complete)"' "$KEEP"/work/*/"$RUN_ID"/status.json 2>/dev/null || return 1
  fi
  touch "$STATE/stepped"
}

report() {
  local name going=false
  if ((NODE_RANK == 0)) && stepped; then going=true; fi
  printf '{"run_id": "%s", "node": %s, "time": %s, "phase": "%s", "exit": "%s", "reason": "%s", "stepped": %s, "launched": "%s", "expires": "%s", "restarts": %s}\n' \
    "$RUN_ID" "$NODE_RANK" "$(now)" "$(recall "$STATE/phase")" "$(recall "$STATE/exit")" "$(recall "$STATE/reason")" \
    "$going" "$LAUNCHED" "$EXPIRES" "$(recall "$KEEP/restarts" 0)" >"$STATE/status.json"
  oci put "$STATE/status.json" "$MINE/status.json"
  for name in boot job; do
    [[ -e $LOG/$name.log ]] || continue
    tail -c 4000000 "$LOG/$name.log" >"$STATE/$name.tail"
    oci put "$STATE/$name.tail" "$MINE/$name.log"
    [[ -z $LOG_ID ]] || oci logs "$LOG/$name.log"
  done
}

end() {
  because "${1:-asked to end}"
  phase ending
  if ((NODES > 1)) && { ((NODE_RANK == 0)) || [[ $(<"$STATE/reason") != complete ]]; }; then
    echo "node $NODE_RANK: $(<"$STATE/reason")" >"$STATE/over"
    if ! timeout 60 "$0" others 2>/dev/null && timeout 60 "$0" over; then # the first to say so is the cause
      if ((NODE_RANK > 0)) && silent; then touch "$STATE/speaks"; fi
    fi
  fi
  timeout $((STOP_GRACE + 30)) systemctl stop gpu-job.service || true
  bring_up
  timeout 120 "$0" report || true
  if [[ -n $TOPIC_ID && ! -e $STATE/told ]] && { ((NODE_RANK == 0)) || [[ -e $STATE/speaks ]]; }; then
    message >"$STATE/message" || true
    timeout 60 "$0" publish && touch "$STATE/told" || true
  fi
  terminate
}

message() { # plain words for a reader of mail, none of the log's
  local seconds=$(($(now) - $(date -d "$LAUNCHED" +%s))) words
  echo "Run $RUN_ID has ended: $(<"$STATE/reason")."
  ((NODE_RANK == 0)) || echo "Node $NODE_RANK tells it, since nothing is heard of node 0."
  words=$(sed -nE 's/.*"reason": *"([^"]+)".*/\1/p' "$KEEP"/work/*/"$RUN_ID"/status.json 2>/dev/null) || true
  [[ -z $words ]] || echo "The job says: $words."
  echo "Exit code: $(recall "$STATE/exit" "none, the job was not started")."
  echo "Cost: $((seconds / 60)) minutes on $NODES $SHAPE since the launch$(awk -v s="$seconds" -v p="${USD_PER_HOUR:-0}" \
    'BEGIN {if (p > 0) printf ", about %.2f USD at list price", s * p / 3600}')."
  echo "Report and results: $STORE_URI/$RUN_ID (python -m job fetch $STORE_URI/$RUN_ID)."
  echo "More: python -m job status $RUN_ID"
  if [[ $(<"$STATE/reason") != complete ]]; then echo "To go on from the last checkpoint: python -m job resubmit $RUN_ID"; fi
}

publish() { oci publish "$RUN_ID: $(<"$STATE/reason")" "$STATE/message"; }

terminate() { # two ways; the unit runs again every minute for as long as there is a machine to run it on
  oci terminate || oci_cli || { say "terminating failed; again in a minute"; return 1; }
  say "terminating was accepted"
}

oci_cli() {
  local id
  command -v oci >/dev/null || return 1
  id=$(curl -fsS --max-time 10 -H 'Authorization: Bearer Oracle' "${OCI_METADATA_BASE_URL:-http://169.254.169.254/opc/v2}/instance/id")
  command oci compute instance terminate --auth instance_principal --force --preserve-boot-volume false --instance-id "$id"
}

case ${1:-} in
  arm | boot | run | stopped | beat | report | wished | over | others | first | publish) "$@" ;;
  end) end "${2:-}" ;;
  deadline) end "max_duration of $MAX_DURATION s is over" ;;
  *) echo "gpu-job: arm | boot | run | stopped | beat | deadline | end" >&2; exit 2 ;;
esac
