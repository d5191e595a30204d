#!/usr/bin/env bash
# Prune, scoring on several GPUs of one or more machines that share the work dir (without GPUs: on CPU processes).
# usage: tools/dist_prune.sh CONFIG CHECKPOINT GPUS --work-dir DIR [prune.py options]
# environment: NNODES, NODE_RANK, MASTER_ADDR, PORT
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT GPUS --work-dir DIR [prune.py options]" >&2; exit 2; }
CONFIG=$1 CHECKPOINT=$2 GPUS=$3
ROOT=$(cd "$(dirname "$0")/.." && pwd)

PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$GPUS" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  "$ROOT/tools/prune.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
