#!/bin/bash
# Extraction of one large file by the GPUs of several nodes, which share a file system.
#
#   sbatch --export=ALL,DATA=/archive/PreProc/large_preproc.h5 docs/cluster/slurm_ddp.sh
#
#SBATCH --job-name=nenya
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@60

# srun's tasks get the signal themselves. Lightning learns from SLURM's variables how the tasks belong together.
srun --kill-on-bad-exit=1 nenya extract model="${MODEL:-ocean}" ckpt="${CKPT:-null}" "data=$DATA" trainer=ddp trainer.num_nodes="$SLURM_NNODES" \
    trainer.devices="$SLURM_NTASKS_PER_NODE" loader.cache_dir="${CACHE:-$SLURM_SUBMIT_DIR/outputs/cache}"
code=$?
if [ "$code" -eq 75 ] || [ "$code" -ge 128 ]; then # interrupted, or ended by a signal: what is finished is kept
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
