#!/bin/bash
# Start one training on several hosts by ssh, with one process per host. The first host is the coordinator. jeffnet, the
# recipe, the images and the run's folder must have the same paths on all hosts.
#
#   HOSTS="node1 node2" deploy/gpu/train_on_hosts.sh efficientnet_b0_paper /shared/runs/b0 --data.path /data
#
# JEFFNET is the program, PORT the coordinator's port, FOLDER the working directory. Ctrl-C and SIGTERM save and stop
# all processes.
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
    # No standard input: ssh must not read from the terminal. Its exit status is that of the command.
    # shellcheck disable=SC2029
    ssh "${hosts[id]}" "$remote" </dev/null > >(sed -u "s/^/${hosts[id]}: /") 2>&1 &
    processes+=($!)
done
# A signal to one process stops all of them, at the same step.
trap 'ssh "${hosts[0]}" "kill -TERM \$(cat $pid_file)" </dev/null' INT TERM

status=0
for process in "${processes[@]}"; do
    code=0
    wait "$process" || code=$?
    # A signal interrupts `wait`, not the processes.
    while kill -0 "$process" 2>/dev/null; do
        code=0
        wait "$process" || code=$?
    done
    ((code == 0)) || status=$code
done
exit "$status"
