#!/usr/bin/env bash
# A container out of what every Linux has: contain.sh NEW FILES SHOWN… -- COMMAND…, in namespaces of its own (unshare).
# Its root is NEW, read-only: the system's programs and SHOWN; /etc, /run, /var and the scripts are those below FILES.
set -eu
new=$1 files=$2 inside=$PATH
shift 2
PATH=/usr/sbin:/usr/bin:/sbin:/bin

show() { # from, to
  mkdir -p "$new$2"
  mount --rbind "$1" "$new$2"
}

mount -t tmpfs none "$new"
for place in /usr/* /usr/local/* /usr/local/lib/* /bin /sbin /lib /lib64; do
  case $place in /usr/local | /usr/local/lib | /usr/local/sbin) continue ;; esac
  if [[ -L $place ]]; then
    mkdir -p "$new${place%/*}"
    cp --no-dereference "$place" "$new$place"
  elif [[ -d $place ]]; then
    show "$place" "$place"
  fi
done
while [[ $1 != -- ]]; do
  [[ -e $new$1 ]] || show "$1" "$1"
  shift
done
shift
show "$files" "$files"
for place in /etc /run /var /usr/local/sbin /usr/local/lib/gpu-job; do show "$files$place" "$place"; done
show /dev /dev
mkdir -p "$new/proc" "$new/tmp"
mount -t proc none "$new/proc"
mount -o remount,ro "$new"
exec chroot "$new" /usr/bin/env PATH="$inside" "$@"
