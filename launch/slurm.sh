#!/bin/bash
# A run on several nodes: one `accelerate launch` a node, which starts a process for each of its GPUs.
#   sbatch --nodes 4 launch/slurm.sh gemma-tools --learning_rate 1e-4        ENGINE=fsdp2 (default), ddp, zero2 or zero3
# Two minutes before its time is over SLURM tells this script (USR1), which tells the run (SIGTERM): it finishes its step, saves and ends,
# and the job is queued again. So is one that is preempted (PreemptMode=REQUEUE). The same command goes on from the newest checkpoint.
# Partition, account and time limit are yours to add.
#SBATCH --job-name=sft-recipes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=slurm-%j.out

set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: sbatch [--nodes N] launch/slurm.sh RECIPE [--field value ...]" >&2
  exit 2
fi

cd "${SLURM_SUBMIT_DIR:?start it with sbatch}"
ENGINE="${ENGINE:-fsdp2}"
GPUS_PER_NODE="${SLURM_GPUS_ON_NODE:-8}"
NODES="$SLURM_JOB_NUM_NODES"
MAIN_IP="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"  # which reads to the end: head would not, and scontrol would be ended by a signal
MAIN_PORT=$((20000 + SLURM_JOB_ID % 20000))  # two jobs of one node do not meet
if [ ! -f "launch/$ENGINE.yaml" ]; then
  echo "ENGINE=$ENGINE: no launch/$ENGINE.yaml" >&2
  exit 2
fi

export ENGINE GPUS_PER_NODE NODES MAIN_IP MAIN_PORT
AGAIN=
trap 'AGAIN=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1  # without --batch it goes to the steps, not to this script

# SLURM_NODEID is known on each node only, so the shell that asks for it runs there; exec hands it SLURM's signals
srun --kill-on-bad-exit=1 bash -c 'exec .venv/bin/accelerate launch \
  --config_file "launch/$ENGINE.yaml" \
  --num_machines "$NODES" \
  --num_processes "$((NODES * GPUS_PER_NODE))" \
  --machine_rank "$SLURM_NODEID" \
  --main_process_ip "$MAIN_IP" \
  --main_process_port "$MAIN_PORT" \
  -m sft_recipes train "$@"' train "$@" &
CODE=0
wait $! || CODE=$?
if [ -n "$AGAIN" ]; then
  wait $! || CODE=$?  # the first was cut short by the signal
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$CODE"
