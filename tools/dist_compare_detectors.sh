#!/usr/bin/env bash
# Compare backbones in a detector on several GPUs of one or more machines that share the work dir (or on CPU processes).
# usage: tools/dist_compare_detectors.sh CONFIG GPUS --backbones ... --work-dir DIR [compare_detectors.py options]
# environment: NNODES, NODE_RANK, MASTER_ADDR, PORT
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CONFIG GPUS --backbones ... --work-dir DIR [compare_detectors.py options]" >&2; exit 2; }
CONFIG=$1 GPUS=$2
ROOT=$(cd "$(dirname "$0")/.." && pwd)

PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$GPUS" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  "$ROOT/tools/compare_detectors.py" "$CONFIG" --launcher pytorch "${@:3}"
