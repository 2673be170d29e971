#!/usr/bin/env bash
# A sweep in one Slurm allocation: Ray's head on the first node, workers on every node, the driver on the head.
#   sbatch deploy/slurm.sh latency --data /shared/store --run /shared/run --trials 200
# Submitted again after a time-out or a crash, it continues the run. All nodes must reach --data and --run.
#SBATCH --job-name=raypipe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gres=gpu:1
#SBATCH --time=24:00:00
# A minute before the time limit, the sweep finishes the epochs under way and stops:
#SBATCH --signal=B:TERM@60
set -euo pipefail

export RAY_USAGE_STATS_ENABLED=0
port=${RAYPIPE_PORT:-6379}
cpus=${SLURM_CPUS_PER_TASK:-1}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}'):$port

# Anyone who reaches a Ray cluster can run code on it. This job's own token keeps other users of the nodes out.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN

srun --overlap --nodes=1 --ntasks=1 -w "$head" \
  ray start --head --port="$port" --num-cpus="$cpus" --include-dashboard=false --block &
cluster=("$!")
# shellcheck disable=SC2317  # the trap calls it
end() { kill "${cluster[@]}" 2>/dev/null || true; }
trap end EXIT

# Wait until the head answers.
for _ in $(seq 60); do
  ray health-check --address "$address" >/dev/null 2>&1 && break
  sleep 1
done
for node in "${nodes[@]:1}"; do
  srun --overlap --nodes=1 --ntasks=1 -w "$node" ray start --address="$address" --num-cpus="$cpus" --block &
  cluster+=("$!")
done

python -m raypipe sweep "$@" --address "$address" &
sweep=$!
trap 'kill -TERM "$sweep"' TERM
status=0
wait "$sweep" || status=$?
if kill -0 "$sweep" 2>/dev/null; then # SIGTERM interrupted the wait: the sweep finishes its epochs
  status=0
  wait "$sweep" || status=$?
fi
exit "$status"
