#!/usr/bin/env bash
# A Slurm cluster of this one machine, for tests: munged, slurmctld and one slurmd for each of two nodes, all of whose
# files, keys, sockets and ports are their own. Nothing outside DIR is written, and a Slurm or munge that the machine
# runs already is left alone. Any user may start it, for jobs of that user.
#
#   slurm_node.sh start DIR    starts it in DIR (made here); clients then need SLURM_CONF=DIR/slurm.conf
#   slurm_node.sh stop DIR     cancels its jobs and takes its daemons down, by their pid files
#   slurm_node.sh install      installs Debian's packages, as root; `start` does so too where CI=true
#
# Exit codes: 0 done, 1 the daemons did not come up (their logs are in DIR), 2 wrong usage, 69 not possible on this
# machine, with one line that says why.
set -u

readonly FAILED=1 USAGE=2 UNAVAILABLE=69
readonly PROGRAMS="munged slurmctld slurmd sbatch scontrol"
PATH=$PATH:/usr/sbin:/sbin

cannot() {
    echo "no Slurm here: $1" >&2
    exit "$UNAVAILABLE"
}

install_packages() {
    [ "$(id -u)" = 0 ] || cannot "installing slurm-wlm and munge needs root"
    command -v apt-get >/dev/null || cannot "there is no apt-get to install slurm-wlm and munge with"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get -qq update && apt-get -qq install --yes --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 ||
        cannot "apt-get could not install slurm-wlm and munge"
}

check_machine() {
    local program host
    for program in $PROGRAMS; do
        if ! command -v "$program" >/dev/null; then
            [ "${CI:-}" = true ] || cannot "$program is not installed (tests/cluster/slurm_node.sh install)"
            install_packages
            break
        fi
    done
    host=$(hostname)
    getent hosts "$host" >/dev/null || cannot "the hostname $host does not resolve (add it to /etc/hosts)"
}

# A port that nobody listens on, among those that no client is given.
free_port() {
    local port
    while :; do
        port=$((10000 + RANDOM % 20000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# Two nodes that are both this machine, with two CPUs and two GPUs each that exist on paper only: memory is not
# accounted for. A credential's life is also what a requeued job waits for before it may start again: 120 s by default.
# Jobs of `main` make way for jobs of `urgent`: they get SIGTERM at once, and are requeued GraceTime seconds later.
write_configuration() {
    local host
    host=$(hostname)
    echo "CgroupPlugin=cgroup/v1" >"$1/cgroup.conf" # nobody uses it; left open, slurmd would not start without cgroups
    touch "$1/gpu0" "$1/gpu1"
    echo "Name=gpu File=$1/gpu[0-1]" >"$1/gres.conf"
    cat >"$1/slurm.conf" <<CONFIGURATION
ClusterName=keel
SlurmctldHost=$host
SlurmctldPort=$(free_port)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$1/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$1/state
SlurmdSpoolDir=$1/spool-%n
SlurmctldPidFile=$1/slurmctld.pid
SlurmdPidFile=$1/slurmd-%n.pid
SlurmctldLogFile=$1/slurmctld.log
SlurmdLogFile=$1/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
KillWait=20
MinJobAge=3600
GresTypes=gpu
NodeName=DEFAULT CPUs=2 Gres=gpu:2 State=UNKNOWN
NodeName=keel[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$(free_port),$(free_port)]
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF State=UP
CONFIGURATION
}

start() {
    local dir=$1 node
    check_machine
    [ "${#dir}" -le 90 ] || cannot "a socket's path may have 107 characters, and $dir is too long"
    mkdir -p "$dir/state" || cannot "$dir cannot be made"
    dir=$(cd "$dir" && pwd)
    write_configuration "$dir"
    export SLURM_CONF=$dir/slurm.conf
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
    # --force: the folder may lie below one that only its owner can enter
    munged --force --key-file "$dir/munge.key" --socket "$dir/munge.socket" --pid-file "$dir/munged.pid" \
        --log-file "$dir/munged.log" --seed-file "$dir/munge.seed" --num-threads 2 2>"$dir/munged.err" ||
        failed "$dir" munged
    slurmctld -i -f "$SLURM_CONF" || failed "$dir" slurmctld
    for node in keel1 keel2; do
        mkdir -p "$dir/spool-$node"
        slurmd -f "$SLURM_CONF" -N "$node" || failed "$dir" slurmd
    done
    for _ in $(seq 100); do
        [ "$(sinfo --noheader --format '%T %D' 2>/dev/null)" = "idle 2" ] && return
        sleep 0.2
    done
    failed "$dir" "the nodes"
}

failed() {
    echo "Slurm: $2 did not come up; the logs in $1 end with $(cat "$1"/*.log | grep -iE 'error|fatal' | tail -n 1)" >&2
    stop "$1"
    exit "$FAILED"
}

# Ends the process of a pid file, and waits until it is gone; one that does not go within 20 s is killed.
end() {
    local pid
    pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.2
    done
    kill -KILL "$pid" 2>/dev/null
}

stop() {
    local file
    if [ -e "$1/slurm.conf" ] && [ -e "$1/slurmctld.pid" ]; then
        export SLURM_CONF=$1/slurm.conf
        scancel --user "$(id -un)" 2>/dev/null
        for _ in $(seq 100); do
            [ -z "$(squeue --noheader 2>/dev/null)" ] && break
            sleep 0.2
        done
    fi
    for file in "$1"/slurmd-*.pid "$1/slurmctld.pid"; do
        end "$file" &
    done
    wait
    end "$1/munged.pid" # the others sign with it until they are gone
}

case "${1:-} $#" in
"start 2") start "$2" ;;
"stop 2") stop "$2" ;;
"install 1") install_packages ;;
*)
    echo "usage: slurm_node.sh start DIR | stop DIR | install" >&2
    exit "$USAGE"
    ;;
esac
