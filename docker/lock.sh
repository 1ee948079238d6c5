#!/usr/bin/env bash
# Locks an image with another torch: docker/lock.sh NAME TORCH TORCHVISION PIP-COMPILE FLAG…
#
# Writes docker/requirements-NAME.txt: the packages of requirements.txt in the same versions, except torch, torchvision
# and what they bring. `make lock` makes cu12 by it; docker/README.md shows how to make one for CPU alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
lock=docker/requirements-$1.txt torch=$2 torchvision=$3
shift 3

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(dirname "$1")/python" - >"$folder/wanted.in" <<'PYTHON'
import tomllib
with open("pyproject.toml", "rb") as file:
    wanted = tomllib.load(file)["project"]["dependencies"]
print(*(line for line in wanted if not line.startswith("torch")), sep="\n")
PYTHON
printf '%s\n' "torch==$torch" "torchvision==$torchvision" >>"$folder/wanted.in"
sed -nE 's/^([a-z0-9._-]+==[^ ]+) .*/\1/p' requirements.txt |
  grep -vE '^(torch|torchvision|triton|cuda-[a-z]+)==|^nvidia-' >"$folder/same.txt"
grep -oE '^nvidia-ml-py==[^ ]+' requirements.txt >>"$folder/same.txt"

"$@" --constraint "$folder/same.txt" --output-file "$lock" "$folder/wanted.in"
sed -i -e '/^    #   -c same\.txt$/d' -e 's/-r wanted\.in/gpu-job (pyproject.toml)/' -e "s|$folder/||" "$lock"
