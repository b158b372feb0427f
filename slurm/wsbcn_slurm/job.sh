#!/bin/bash
# What a job does on its first node: start the processes of the training, and requeue the job when
# they were told to stop. submit.py's batch script sets these variables and replaces itself by
# `bash job.sh srun … python …`:
#
#   run                folder of the run's record, <output_dir>/slurm
#   python             shell command that runs Python
#   tasks_per_node     processes on each node
#   max_requeues       bound on restarts
#   last_call          seconds after the signal at which processes that have not ended are killed
#   node_failure_wait  seconds in which SLURM finds out that a node is down

export -n run python tasks_per_node max_requeues last_call node_failure_wait # for this script only

job=$SLURM_JOB_ID
[ -z "$SLURM_ARRAY_JOB_ID" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
restart=${SLURM_RESTART_COUNT:-0}
# Where the processes of this start of the job leave word for each other and for this script.
export WSBCN_ATTEMPT=$run/attempt_$job.$restart
mkdir -p "$WSBCN_ATTEMPT"

# ${python} may be several words.
exec > >(eval "exec $python -m wsbcn_slurm.split_log \"\$run\"") 2>&1
splitter=$!

note() { # EVENT [JSON FIELDS]
    echo "{\"time\": $(date +%s.%3N), \"event\": \"$1\", \"job\": \"$job\"," \
        "\"restart\": $restart${2:+, $2}}" >>"$run/events.jsonl"
}

finish() { # STATUS
    rm -rf "$WSBCN_ATTEMPT"
    exec >&- 2>&-
    wait "$splitter"
    exit "$1"
}

# SLURM sends SIGUSR2 to this script alone (--signal=B:…). A training saves a checkpoint after its
# step and ends; whatever else the processes are doing ends at once.
stop() {
    interrupted=yes
    told=yes
    trap '' USR2
    echo "=== job $job: SIGUSR2, to end within $last_call seconds ==="
    scancel --signal=USR2 "$job"
    # Step 0, which is srun's: SIGKILL to the job would end this script too.
    { sleep "$last_call" && scancel --signal=KILL "$job.0"; } >/dev/null 2>&1 &
}
trap stop USR2

echo "=== job $job, restart $restart, on $SLURM_JOB_NODELIST: $(date) ==="
note started "\"nodes\": \"$SLURM_JOB_NODELIST\", \"tasks\": $((SLURM_JOB_NUM_NODES * tasks_per_node))"
"$@" &
processes=$!
interrupted=yes
while [ "$interrupted" ]; do # a signal ends `wait` too
    interrupted=
    wait "$processes"
    status=$?
done
echo "=== job $job, restart $restart: srun ended with status $status ==="

reason=
if [ -e "$WSBCN_ATTEMPT/stopped" ]; then
    reason="stopped after a step"
elif [ "$status" -eq 140 ]; then # 128 + SIGUSR2
    reason="stopped outside of the training"
elif [ "$told" ] && [ "$status" -eq 137 ]; then # 128 + SIGKILL
    reason="no step has ended within $last_call seconds"
fi
if [ "$reason" ] && [ "$restart" -lt "$max_requeues" ]; then
    note requeued "\"reason\": \"$reason\""
    scontrol requeue "$job" && sleep 60 # it ends this script
    finish 1
elif [ "$reason" ]; then
    error="not requeued: restarted $restart times, max_requeues is $max_requeues; submit.py --resume"
    note failed "\"rank\": 0, \"error\": \"$error goes on from the last checkpoint\""
    finish 1
fi

if [ "$status" -eq 0 ]; then
    note finished
elif ! timeout 60 srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 true; then
    echo "=== a node does not answer: waiting for SLURM to requeue the job ==="
    sleep "$node_failure_wait"
fi
finish "$status"
