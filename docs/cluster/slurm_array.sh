#!/bin/bash
# Extraction of an archive by a job array: each task takes its share of the sorted list of files.
# A task that is preempted, or reaches its time limit, stops within seconds, is queued again and resumes where it stopped.
#
#   sbatch --export=ALL,DATA='/archive/PreProc/*.h5',OUT=/archive/latents docs/cluster/slurm_array.sh
#
# MODEL=v5,CKPT=/path/last.pth in --export= extracts with a network of your own, trained by model=v5.
#
#SBATCH --job-name=nenya
#SBATCH --array=0-15
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@60

# The shell gets the signal, and hands it on.
trap 'stopped=1; kill -TERM "$work"; wait "$work"; code=$?' USR1 TERM

srun nenya extract model="${MODEL:-ocean}" ckpt="${CKPT:-null}" "data=$DATA" "out=$OUT" loader.cache_dir="${CACHE:-/tmp}" &
work=$!
wait "$work"
code=${code:-$?}
if [ "$code" -eq 75 ] || [ -n "$stopped" ]; then # interrupted: what is finished is kept
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
