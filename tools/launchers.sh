# How the dist_*.sh and slurm_*.sh in this folder start a tool; they source it.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

# the command line; the tools write it into their reports
UPVIT_MM_COMMAND=
for name in NNODES GPUS GPUS_PER_NODE; do
  if [ -n "${!name:-}" ]; then UPVIT_MM_COMMAND+="$name=${!name} "; fi
done
UPVIT_MM_COMMAND+=$(printf '%q ' "$0" "$@")
export UPVIT_MM_COMMAND=${UPVIT_MM_COMMAND% }

# run_dist GPUS TOOL [words of the tool]: torchrun; environment: NNODES, NODE_RANK, MASTER_ADDR, PORT
run_dist() {
  if ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "error: GPUS = $1: must be a whole number of 1 or more; $(sed -n 's/^# usage:/usage:/p' "$0")" >&2
    exit 2
  fi
  exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$1" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$ROOT/tools/$2" "${@:3}"
}

# run_slurm PARTITION JOB_NAME TOOL [words of the tool]: srun, one task per GPU; environment: GPUS, GPUS_PER_NODE,
# CPUS_PER_TASK, SRUN_ARGS
run_slurm() {
  local gpus=${GPUS:-8}
  local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
  # shellcheck disable=SC2086  # SRUN_ARGS holds several words
  exec srun --partition="$1" --job-name="$2" \
    --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$ROOT/tools/$3" "${@:4}"
}
