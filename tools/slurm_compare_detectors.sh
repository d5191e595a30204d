#!/usr/bin/env bash
# Compare backbones in a detector under slurm, one task per GPU.
# usage: tools/slurm_compare_detectors.sh PARTITION JOB_NAME CONFIG WORK_DIR --backbones ... [compare_detectors.py options]
# environment: GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS
set -euo pipefail
[ $# -ge 4 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR --backbones ... [compare_detectors.py options]" >&2; exit 2; }
. "$(dirname "$0")/launchers.sh"
run_slurm "$1" "$2" compare_detectors.py "$3" --work-dir "$4" --launcher slurm "${@:5}"
