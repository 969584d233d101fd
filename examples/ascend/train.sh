#!/bin/bash
# Train on the hosts of a job, or go on with the run that its folder holds. NOT RUN ON AN NPU BY US.
#
#     bash train.sh -c repvgg_a1 --data_dir FOLDER --ckpt_save_dir FOLDER [other options of mindrepvgg train]
#
# Every host of the job runs the same command. MindCluster's Ascend Operator and ModelArts say in the environment which
# host this is. Without them it is the only host, of eight NPUs or of $NPUS.

if [ -n "$MS_SCHED_HOST" ]; then  # Ascend Operator
    here=$MS_LOCAL_WORKER all=$MS_WORKER_NUM rank=$MS_NODE_RANK
    place=(--master_addr "$MS_SCHED_HOST" --master_port "$MS_SCHED_PORT" --node_rank "$rank")
elif [ -n "$VC_WORKER_HOSTS" ]; then  # ModelArts; the first host of the list has rank 0
    here=${MA_NUM_GPUS:-8} all=$((${MA_NUM_GPUS:-8} * MA_NUM_HOSTS)) rank=$VC_TASK_INDEX
    place=(--master_addr "${VC_WORKER_HOSTS%%,*}" --node_rank "$rank")
else
    here=${NPUS:-8} all=${NPUS:-8} rank=0 place=()
fi

before=
for word in "$@"; do
    case $word in --ckpt_save_dir=*) folder=${word#*=} ;; esac
    [ "$before" = --ckpt_save_dir ] && folder=$word
    before=$word
done
if [ -z "$folder" ]; then
    echo "error: give --ckpt_save_dir FOLDER, where the run is kept and looked for when the job starts again" >&2
    exit 2
fi
resume=()
compgen -G "$folder/*_last.ckpt" > /dev/null && resume=(--resume)

mkdir -p "$folder"
unset RANK_TABLE_FILE  # msrun's processes find each other by its scheduler
exec msrun --worker_num "$all" --local_worker_num "$here" "${place[@]}" --join True --bind_core True \
    --log_dir "$folder/msrun_log/host_$rank" python -m mindrepvgg train "$@" "${resume[@]}"
