#!/bin/bash
# A command on latents or an archive by a job array: embed, outliers, metrics, index or update. Each task does a share
# and keeps it beside the output; a job after all of them writes the result. All see the same folders.
#
#   job=$(sbatch --parsable docs/cluster/slurm_shards.sh embed data=/archive/latents/ table=/archive/all.parquet out=/archive/map.parquet)
#   sbatch --dependency=afterok:$job --wrap "nenya embed data=... table=... out=/archive/map.parquet shard=merge"
#
# A task that is preempted, or reaches its time limit, is queued again and resumes with what it kept.
#
#SBATCH --job-name=nenya
#SBATCH --array=0-15
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@60

# The shell gets the signal, and ends the work: what is finished is kept.
trap 'stopped=1; kill -TERM "$work"; wait "$work"; code=$?' USR1 TERM

srun nenya "$@" "shard=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" &
work=$!
wait "$work"
code=${code:-$?}
if [ "$code" -eq 75 ] || [ -n "$stopped" ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
