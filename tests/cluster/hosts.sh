#!/usr/bin/env bash
# Hosts on one machine: network namespaces on a bridge, each with its own processes, mounts, host name (raypipe0, ...,
# which all of them know), home, /tmp/ray and /dev/shm, and an sshd that lets root in by a key made for the occasion. All
# other files are this machine's.
# Needs root, for namespaces, links, mounts and sshd are root's to make; and iproute2, openssh-server, util-linux, rsync
# (with which `ray up` copies files). The bridge's alias is the process that started them: what it left behind when it was
# killed is removed by the next `up`. Nothing else that STATE does not name is touched.
#   hosts.sh up STATE BIN N [NAME=VALUE ...]   N <= 10 hosts, 10.77.0.10, .11, ...; BIN holds the `ray` and `python`
#                                              that they run, and NAME is in the environment of whoever logs in
#   hosts.sh cut|mend STATE I                  take host I's link down, or up again
#   hosts.sh kill STATE I                      SIGKILL all that runs on host I
#   hosts.sh down STATE
set -eu
if [ "$(id -u)" != 0 ]; then
  echo "hosts.sh: needs root: namespaces, links, mounts and sshd are root's to make" >&2
  exit 77
fi
command=$1 state=$2

become() { # host I, within its namespaces
  local i=$1 bin=$2 home=$state/host$1
  shift 2
  mkdir -p "$home/root/.ssh" /tmp/ray
  cp "$state/ssh/id.pub" "$home/root/.ssh/authorized_keys"
  chmod 700 "$home/root/.ssh"
  chmod 600 "$home/root/.ssh/authorized_keys"
  echo "export PATH=$bin:\$PATH" | tee "$home/root/.bash_profile" >"$home/root/.bashrc"
  # Root's home is elsewhere on this host; /root itself, where a Python may lie, stays in sight.
  awk -F: -v OFS=: -v home="$home/root" '$1 == "root" { $6 = home; $7 = "/bin/bash" } { print }' \
    /etc/passwd >"$home/passwd"
  mount --bind "$home/passwd" /etc/passwd
  mount --bind "$state/names" /etc/hosts
  mount -t tmpfs -o size=4g tmpfs /tmp/ray
  mount -t tmpfs -o size=4g tmpfs /dev/shm
  hostname "raypipe$i"
  ssh-keygen -q -t ed25519 -N "" -f "$home/hostkey"
  cat >"$home/sshd_config" <<C
Port 22
ListenAddress 10.77.0.1$i
HostKey $home/hostkey
AuthorizedKeysFile $home/root/.ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
SetEnv PATH=$bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin $*
C
  exec "$(command -v sshd)" -D -e -f "$home/sshd_config"
}

clear_remains() { # of hosts whose tests were killed; those of living tests stay as they are
  local owner name
  ip link show brraypipe >/dev/null 2>&1 || return 0
  owner=$(cat /sys/class/net/brraypipe/ifalias)
  if [ -n "$owner" ] && [ -d "/proc/$owner" ]; then
    echo "hosts.sh: process $owner uses such hosts" >&2
    exit 1
  fi
  for name in $(ip netns list | awk '/^raypipe[0-9]/ { print $1 }'); do
    ip netns pids "$name" | xargs -r kill -9
    ip link del "v$name" 2>/dev/null || true
    ip netns del "$name"
  done
  ip link del brraypipe
}

up() { # N hosts
  local bin=$1 n=$2 i
  shift 2
  mkdir -p "$state/ssh" /run/sshd
  ssh-keygen -q -t ed25519 -N "" -f "$state/ssh/id"
  clear_remains
  ip link add brraypipe type bridge
  ip link set brraypipe alias "$PPID"
  : >"$state/hosts"
  { echo "127.0.0.1 localhost" && for ((i = 0; i < n; i++)); do echo "10.77.0.1$i raypipe$i"; done; } >"$state/names"
  ip addr add 10.77.0.254/24 dev brraypipe
  ip link set brraypipe up
  for ((i = 0; i < n; i++)); do
    ip netns add "raypipe$i"
    echo "$i" >>"$state/hosts"
    ip link add "vraypipe$i" type veth peer name e0 netns "raypipe$i"
    ip link set "vraypipe$i" master brraypipe up
    ip -n "raypipe$i" addr add "10.77.0.1$i/24" dev e0
    ip -n "raypipe$i" link set e0 up
    ip -n "raypipe$i" link set lo up
    ip netns exec "raypipe$i" unshare --uts --ipc --pid --fork --mount --mount-proc --kill-child=SIGKILL \
      bash "$0" become "$state" "$i" "$bin" "$@" >"$state/host$i.log" 2>&1 </dev/null &
    echo $! >"$state/host$i.pid"
  done
}

kill_host() { # and wait until it is dead, reaped or not
  local pid
  pid=$(cat "$state/host$1.pid" 2>/dev/null) || return 0
  rm "$state/host$1.pid"
  kill -9 "$pid" 2>/dev/null || true # its first process follows it, and with that all of its namespace
  while grep -q '^State:[[:space:]]*[^Z]' "/proc/$pid/status" 2>/dev/null; do sleep 0.1; done
}

down() {
  local i
  [ -f "$state/hosts" ] || return 0
  while read -r i; do
    kill_host "$i"
    ip link del "vraypipe$i" 2>/dev/null || true
    ip netns del "raypipe$i"
  done <"$state/hosts"
  ip link del brraypipe
  rm "$state/hosts"
}

case $command in
  up) up "${@:3}" ;;
  become) become "${@:3}" ;;
  cut) ip link set "vraypipe$3" down ;;
  mend) ip link set "vraypipe$3" up ;;
  kill) kill_host "$3" ;;
  down) down ;;
  *)
    echo "hosts.sh: no such command: $command" >&2
    exit 2
    ;;
esac
