#!/usr/bin/env bash
# Compare backbones in a detector on several GPUs of one or more machines that share the work dir (or on CPU processes).
# usage: tools/dist_compare_detectors.sh CONFIG GPUS --backbones ... --work-dir DIR [compare_detectors.py options]
# environment: NNODES, NODE_RANK, MASTER_ADDR, PORT
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CONFIG GPUS --backbones ... --work-dir DIR [compare_detectors.py options]" >&2; exit 2; }
. "$(dirname "$0")/launchers.sh"
run_dist "$2" compare_detectors.py "$1" --launcher pytorch "${@:3}"
