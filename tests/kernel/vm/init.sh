#!/bin/bash
# The first process of the machine that run.sh starts: makes a usable system around the command and reports how it ended.
# The root is the host's, over virtiofs; run.sh's folder `out` is the one place that can be written back.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

mount -t proc proc /proc
read -r cmdline </proc/cmdline
out=${cmdline##*berth.out=}
out=${out%% *}
read -r -a uptime </proc/uptime

mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr

finish() {
  dmesg >"$out/dmesg"
  echo "$1" >"$out/status"
  # The host sees writes to virtiofs at once; nothing else here is worth an orderly end.
  echo b >/proc/sysrq-trigger
  sleep 60
}

modules=
working_directory=/
command=(false)
# shellcheck source=/dev/null
source "$out/job"

mount -t tmpfs -o size=90% tmpfs /run
mkdir -p /run/vm/out /run/vm/tmp /run/vm/upper /run/vm/work /run/lock
mount --bind "$out" /run/vm/out
out=/run/vm/out
mkdir -p "$out/files"
mount -o remount,bind,ro /
if [[ -n ${keep_tmp:-} ]]; then
  mount -t overlay -o lowerdir=/tmp,upperdir=/run/vm/upper,workdir=/run/vm/work overlay /tmp
else
  mount -t tmpfs -o size=90%,mode=1777 tmpfs /tmp
fi
mount -t tmpfs tmpfs /var/tmp
mkdir -p /tmp/test

ip link set lo up
hostname vm 2>/dev/null || true
modprobe virtio_console
port=
for name in /sys/class/virtio-ports/*/name; do
  [[ $(<"$name") == output ]] && port=/dev/$(basename "$(dirname "$name")")
done
for module in $modules; do
  modprobe "$module" || finish 1
done
echo "${uptime[0]}" >"$out/booted"

status=0
(
  # shellcheck source=/dev/null
  source "$out/environment"
  export TMPDIR=/tmp TEST_TMPDIR=/tmp/test XML_OUTPUT_FILE=$out/test.xml TEST_UNDECLARED_OUTPUTS_DIR=$out/files
  export BERTH_VM=1
  cd "$working_directory" || exit 1
  exec "${command[@]}"
) </dev/null >"$port" 2>&1 || status=$?
finish "$status"
