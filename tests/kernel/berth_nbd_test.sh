#!/bin/bash
# berth-nbd's -c and -d with a real kernel.
set -eu

nbd=$PWD/control/berth_nbd/berth-nbd
cd "$(mktemp -d)"
mkdir mnt

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# expect CODE COMMAND...: runs it, and leaves what it says in the files out and err.
expect() {
  local want=$1 got=0
  shift
  echo "+ $*"
  "$@" >out 2>err </dev/null || got=$?
  [[ $got == "$want" ]] || fail "'$*' ended with $got and not with $want: $(cat out err)"
}

says() {
  grep -q -- "$1" "$2" || fail "'$1' is not in $2: $(cat "$2")"
}

free() {
  [[ $(cat "/sys/block/$1/size") == 0 && ! -e /sys/block/$1/pid ]] || fail "$1 is not free"
}

# The process that -c left has gone: waits for an event, as its pid file goes last but one.
gone() {
  tail --pid="$1" -f /dev/null
}

partitioned() {
  truncate -s 64M "$1"
  /usr/sbin/sfdisk -q "$1" <<<$'label: dos\n2048,16384\n20480,\n'
}

echo "== attach, use, detach"
partitioned disk.raw
expect 0 "$nbd" -c /dev/nbd3 -f raw --pid-file pid disk.raw
pid=$(cat pid)
[[ -b /dev/nbd3p1 && -b /dev/nbd3p2 ]] || fail "no partitions"
expect 0 mkfs.ext4 -q /dev/nbd3p1
expect 0 mount /dev/nbd3p1 mnt
echo hello >mnt/greeting
expect 4 "$nbd" -d /dev/nbd3
says "mounted at" err
expect 0 umount mnt
expect 0 "$nbd" -d /dev/nbd3
says "/dev/nbd3 disconnected" out
free nbd3
kill -0 "$pid" 2>kill.err && fail "the server is still there"
[[ ! -e pid ]] || fail "the pid file is still there"
expect 3 "$nbd" -d /dev/nbd3
says "nothing is connected" err

echo "== one partition, read-only"
expect 0 "$nbd" -r -P 1 -c /dev/nbd4 -f raw disk.raw
[[ $(blockdev --getro /dev/nbd4) == 1 ]] || fail "writable"
expect 0 mount -o ro,noload /dev/nbd4 mnt
[[ $(cat mnt/greeting) == hello ]] || fail "another content"
umount mnt
expect 0 "$nbd" -d /dev/nbd4

echo "== a temporary overlay"
sum=$(sha256sum <disk.raw)
expect 0 "$nbd" -s -c /dev/nbd4 -f raw disk.raw
expect 0 mount /dev/nbd4p1 mnt
echo bye >mnt/greeting
umount mnt
expect 0 "$nbd" -d /dev/nbd4
[[ $(sha256sum <disk.raw) == "$sum" ]] || fail "the image under the overlay was changed"

echo "== two devices, one chosen by the kernel, qcow2"
qemu-img create -q -f qcow2 disk.qcow2 64M
expect 0 "$nbd" -c /dev/nbd5 -f raw disk.raw
expect 0 "$nbd" -c auto --connections 2 -f qcow2 disk.qcow2
device=$(cat out)
[[ $device == /dev/nbd* && $device != /dev/nbd5 ]] || fail "the device is '$device'"
dd if=/dev/nbd5 of="$device" bs=1M oflag=direct status=none
expect 1 "$nbd" -c /dev/nbd5 -f raw --pid-file pid2 disk.raw
says "disk.raw" err
expect 1 "$nbd" -c "$device" --pid-file pid2 --image-opts driver=null-co,size=1M
says "$device" err
[[ ! -e pid2 ]] || fail "a pid file was left"
expect 0 "$nbd" -d "$device"
expect 0 "$nbd" -d /dev/nbd5
expect 0 qemu-img check -q -f qcow2 disk.qcow2
expect 0 qemu-img compare -q -f raw -F qcow2 disk.raw disk.qcow2

echo "== SIGTERM lets go of the device"
expect 0 "$nbd" -c /dev/nbd3 -f raw --pid-file pid disk.raw
pid=$(cat pid)
kill -TERM "$pid"
gone "$pid"
free nbd3

echo "== a killed server's device can be detached"
expect 0 "$nbd" -c /dev/nbd3 -f raw --pid-file pid disk.raw
pid=$(cat pid)
kill -KILL "$pid"
gone "$pid"
rm pid
expect 0 "$nbd" -d /dev/nbd3
free nbd3

echo "== a device that qemu-nbd attached"
expect 0 qemu-nbd -c /dev/nbd6 -f raw disk.raw
expect 0 "$nbd" -d /dev/nbd6
free nbd6

echo "== without the module"
rmmod nbd
expect 0 "$nbd" -c auto -f raw disk.raw
expect 0 "$nbd" -d "$(cat out)"
echo PASSED
