#!/bin/bash
#SBATCH --job-name=gpt
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --output=/scratch/gpt/runs/gpt/slurm/%j.log
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --requeue
# Forgepress run gpt. Made by `forgepress slurm`; the config is a copy taken at submission.

cd /scratch/gpt || exit 2
export PYTHONSAFEPATH=1
restarts=${SLURM_RESTART_COUNT:-0}
most_restarts=20
if [ "$restarts" -gt "$most_restarts" ]; then
  echo "forgepress: restarted $most_restarts times already (--max-restarts): the job ends here"
  exit 1
fi
echo "forgepress: job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((restarts + 1))"

# The shell hears of the time limit (--signal) and of preemption, and passes it on: the ranks save at their next step.
asked=no cancelled=no
trap 'heard=yes asked=yes; kill -USR1 "$ranks" 2>/dev/null' USR1
trap 'heard=yes cancelled=yes' TERM

srun --kill-on-bad-exit=0 \
  apptainer exec --nv --bind /scratch/gpt --pwd /scratch/gpt /images/forgepress.sif python3 -m forgepress.launch train /scratch/gpt/runs/gpt/slurm/config.yaml &
ranks=$!
heard=yes
while [ "$heard" = yes ]; do   # a signal ends the wait too, while srun goes on
  heard=no
  wait "$ranks"; code=$?
done

# 75: saved on request. 137 and the like: killed (out of memory, a lost node). All else says that it would fail again.
case "$code" in
  75) again=yes ;;
  12[89]|1[3-9][0-9]) again=yes ;;
  *) again=$([ "$asked" = yes ] && [ "$code" -gt 2 ] && echo yes || echo no) ;;
esac
if [ "$again" = yes ] && [ "$cancelled" = no ]; then
  if [ "$restarts" -lt "$most_restarts" ]; then
    echo "forgepress: ended with $code; the job is requeued and goes on from its newest checkpoint"
    scontrol requeue "$SLURM_JOB_ID" && sleep 60   # SLURM ends this shell
  else
    echo "forgepress: ended with $code after $most_restarts restarts (--max-restarts): not requeued"
  fi
fi
exit "$code"
