#!/bin/bash
# In the virtual machine: with the rule, udev does not watch nbd devices; without it, it does.
set -euo pipefail

rule=$1

is_watched() {
  udevadm trigger --action=change --settle /sys/block/nbd0
  [[ -L /run/udev/watch/b43:0 ]]
}

mkdir -p /run/udev/rules.d
/lib/systemd/systemd-udevd --daemon
if ! is_watched; then
  echo "udev watches no nbd device even without the rule: this test shows nothing"
  ls -l /run/udev /run/udev/watch || true
  exit 1
fi
cp "$rule" /run/udev/rules.d/
udevadm control --reload
if is_watched; then
  echo "udev watches nbd0 in spite of $rule"
  exit 1
fi
