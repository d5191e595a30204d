#!/usr/bin/env bash
# Prune under slurm, scoring with one task per GPU; the first task does the rest.
# usage: tools/slurm_prune.sh PARTITION JOB_NAME CONFIG CHECKPOINT WORK_DIR [prune.py options]
# environment: GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS
set -euo pipefail
[ $# -ge 5 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT WORK_DIR [prune.py options]" >&2; exit 2; }
. "$(dirname "$0")/launchers.sh"
run_slurm "$1" "$2" prune.py "$3" "$4" --work-dir "$5" --launcher slurm "${@:6}"
