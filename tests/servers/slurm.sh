#!/bin/sh
# A real Slurm of one node on this machine, for tests:
#
#   tests/servers/slurm.sh start [FOLDER]    prints lines to eval in a shell: export SLURM_CONF=… PATH=…
#   tests/servers/slurm.sh stop FOLDER       cancels all jobs, ends the daemons, removes the folder
#
# It needs Debian's packages slurm-wlm and munge (or the same programs from elsewhere) and installs nothing. Everything
# - keys, sockets, pid files, state, logs - is in FOLDER, a temporary one by default; ports are free ones; the daemons
# belong to the user who calls. Exit status 77: cannot run here, with the reason on stderr.
# SLURM_CPUS (8): CPUs that the node claims to have, however many there are.
set -eu

say() { echo "slurm.sh: $*" >&2; }

free_ports() {
  python3 -c 'import socket
sockets = [socket.socket() for _ in range(2)]
for one in sockets: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))'
}

write_config() {
  ports=$(free_ports)
  host=$(hostname -s)
  mkdir -p "$folder/state" "$folder/spool" "$folder/munge"
  chmod 700 "$folder/munge"
  # munged refuses keys that others may read, and sockets in folders that others cannot enter.
  chmod 755 "$folder"
  (umask 077 && head -c 128 /dev/urandom > "$folder/munge/key")
  cat > "$folder/slurm.conf" <<CONF
ClusterName=potstill
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports% *}
SlurmdPort=${ports#* }
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
# No cgroups and no accounting: neither is at hand in a container.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# A small machine may claim more CPUs than it has.
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=5
MailProg=/bin/true
KillWait=5
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=${SLURM_CPUS:-8} RealMemory=65536 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
}

# Snakemake's plugin takes SLURM_CONF away from the srun that it calls inside a job: an installed Slurm has its
# slurm.conf in /etc. This one says itself where its configuration is.
write_srun() {
  mkdir "$folder/bin"
  printf '#!/bin/sh\nSLURM_CONF="%s" exec "%s" "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$folder/bin/srun"
  chmod +x "$folder/bin/srun"
}

# Wait up to 60 s until a command succeeds.
wait_until() {
  for _ in $(seq 300); do
    "$@" > /dev/null 2>&1 && return 0
    sleep 0.2
  done
  say "gave up waiting for: $*; logs are in $folder"
  return 1
}

node_is_idle() { sinfo --noheader --format=%T | grep -q '^\(idle\|mixed\|allocated\)$'; }

start() {
  for program in munged slurmctld slurmd sbatch srun squeue scancel scontrol sinfo; do
    command -v "$program" > /dev/null || { say "no $program here: the packages slurm-wlm and munge are needed"; exit 77; }
  done
  write_config
  # --force: warnings about the folder's parents, which are not ours to change, must not stop it.
  munged --force --key-file="$folder/munge/key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" 2> "$folder/munged.err"
  slurmctld 2> "$folder/slurmctld.err"
  slurmd 2> "$folder/slurmd.err"
  wait_until node_is_idle
  write_srun
  echo "export SLURM_CONF='$SLURM_CONF'"
  echo "export PATH='$folder/bin':\"\$PATH\""
}

# End the process of a pid file: TERM, and after 10 s KILL.
end() {
  pid=$(cat "$1" 2> /dev/null) || return 0
  kill "$pid" 2> /dev/null || return 0
  for _ in $(seq 50); do
    kill -0 "$pid" 2> /dev/null || return 0
    sleep 0.2
  done
  kill -9 "$pid" 2> /dev/null || true
}

no_jobs() { test -z "$(squeue --noheader)"; }

stop() {
  if [ -S "$folder/munge.socket" ]; then
    squeue --noheader --format=%A | xargs -r scancel || true
    wait_until no_jobs || true
  fi
  end "$folder/slurmd.pid"
  end "$folder/slurmctld.pid"
  end "$folder/munged.pid"
  rm -rf "$folder"
}

case "${1:-}" in
  start) folder=${2:-$(mktemp -d "${TMPDIR:-/tmp}/slurm.XXXXXX")} ;;
  stop) folder=${2:?"which folder?"} ;;
  *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
[ "$1" = stop ] || mkdir -p "$folder"
[ -d "$folder" ] || exit 0
folder=$(cd "$folder" && pwd -P)
export SLURM_CONF="$folder/slurm.conf"
"$1"
