#!/usr/bin/env bash
# Evaluate under slurm, one task per GPU.
# usage: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [test.py options]
# environment: GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS
set -euo pipefail
[ $# -ge 4 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [test.py options]" >&2; exit 2; }
. "$(dirname "$0")/launchers.sh"
run_slurm "$1" "$2" test.py "$3" "$4" --launcher slurm "${@:5}"
