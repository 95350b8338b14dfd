#!/bin/bash
# Starts the same training on several hosts by ssh, one process a host. The first host is the coordinator. jeffnet, the
# recipe, the pictures and the run's folder must be at the same paths on all.
#
#   HOSTS="node1 node2" deploy/gpu/train_on_hosts.sh configs/efficientnet_b0_paper.py /shared/runs/b0 --data.path /data
#
# JEFFNET names the program, PORT the coordinator's port, FOLDER where to start. Ctrl-C and SIGTERM save and stop all.
set -euo pipefail

if (($# < 2)) || [[ -z ${HOSTS:-} ]]; then
    echo "usage: HOSTS=\"HOST ...\" train_on_hosts.sh CONFIG RUN [--ENTRY VALUE ...]" >&2
    exit 2
fi
config=$1
run=$2
shift 2

read -ra hosts <<<"$HOSTS"
jeffnet=${JEFFNET:-jeffnet}
coordinator=${hosts[0]}:${PORT:-55527}
folder=${FOLDER:-$PWD}

pid_file=/tmp/jeffnet-${PORT:-55527}.pid

processes=()
for id in "${!hosts[@]}"; do
    command=("$jeffnet" train --config "$config" --output "$run" --continue "$@"
        --coordinator "$coordinator" --num-processes "${#hosts[@]}" --process-id "$id")
    remote="cd $(printf %q "$folder") && echo \$\$ >$pid_file && exec$(printf ' %q' "${command[@]}")"
    # No standard input, so that ssh does not take it from the terminal. Its exit status is that of the command.
    # shellcheck disable=SC2029
    ssh "${hosts[id]}" "$remote" </dev/null > >(sed -u "s/^/${hosts[id]}: /") 2>&1 &
    processes+=($!)
done
# One process that is told to stop stops all, at the same step.
trap 'ssh "${hosts[0]}" "kill -TERM \$(cat $pid_file)" </dev/null' INT TERM

status=0
for process in "${processes[@]}"; do
    code=0
    wait "$process" || code=$?
    # A signal ends `wait`, but not what it waits for.
    while kill -0 "$process" 2>/dev/null; do
        code=0
        wait "$process" || code=$?
    done
    ((code == 0)) || status=$code
done
exit "$status"
