#!/usr/bin/env bash
# Evaluate on several GPUs of one or more machines (without GPUs: on as many CPU processes, with gloo).
# usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [test.py options]
# environment: NNODES, NODE_RANK, MASTER_ADDR, PORT
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT GPUS [test.py options]" >&2; exit 2; }
. "$(dirname "$0")/launchers.sh"
run_dist "$3" test.py "$1" "$2" --launcher pytorch "${@:4}"
