#!/usr/bin/env bash
# Train on several GPUs of one or more machines (without GPUs: on as many CPU processes, with gloo).
# usage: tools/dist_train.sh CONFIG GPUS [train.py options]     e.g. tools/dist_train.sh configs/... 8 --amp
# environment: NNODES, NODE_RANK, MASTER_ADDR, PORT
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CONFIG GPUS [train.py options]" >&2; exit 2; }
. "$(dirname "$0")/launchers.sh"
run_dist "$2" train.py "$1" --launcher pytorch "${@:3}"
