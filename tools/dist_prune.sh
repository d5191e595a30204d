#!/usr/bin/env bash
# Prune, scoring on several GPUs of one or more machines (without GPUs: on CPU processes).
# usage: tools/dist_prune.sh CONFIG CHECKPOINT GPUS --work-dir DIR [prune.py options]
# environment: NNODES, NODE_RANK, MASTER_ADDR, PORT
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT GPUS --work-dir DIR [prune.py options]" >&2; exit 2; }
. "$(dirname "$0")/launchers.sh"
run_dist "$3" prune.py "$1" "$2" --launcher pytorch "${@:4}"
