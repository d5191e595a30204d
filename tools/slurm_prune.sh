#!/usr/bin/env bash
# Prune under slurm, scoring with one task a GPU; the first task does the rest.
# usage: tools/slurm_prune.sh PARTITION JOB_NAME CONFIG CHECKPOINT WORK_DIR [prune.py options]
# environment: GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS
set -euo pipefail
[ $# -ge 5 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT WORK_DIR [prune.py options]" >&2; exit 2; }
PARTITION=$1 JOB_NAME=$2 CONFIG=$3 CHECKPOINT=$4 WORK_DIR=$5
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
ROOT=$(cd "$(dirname "$0")/.." && pwd)

# shellcheck disable=SC2086  # SRUN_ARGS holds several words
PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec srun --partition="$PARTITION" --job-name="$JOB_NAME" \
  --gres="gpu:$GPUS_PER_NODE" --ntasks="$GPUS" --ntasks-per-node="$GPUS_PER_NODE" \
  --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  "${PYTHON:-python}" -u "$ROOT/tools/prune.py" "$CONFIG" "$CHECKPOINT" --work-dir "$WORK_DIR" --launcher slurm "${@:6}"
