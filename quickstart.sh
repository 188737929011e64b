#!/bin/bash
# Berth's main job, end to end: a disk image becomes /dev/nbdX through one gRPC call. Debian 12, root.
#
#   ./quickstart.sh [--vm] [--source=DIR]
#
# Installs what is missing, builds, starts berthd, and puts an image with the files of DIR through it: attach, mount,
# compare every file, write, detach, check; and once more over a Unix socket, with nbdinfo and nbdcopy. Where the running
# kernel has no nbd, and with --vm, all that happens in a virtual machine that has. Without --source it takes
# /usr/share/doc, and in the virtual machine, whose CPUs may be emulated, as many of its folders as make some 16 MiB.
# Nothing of the host is changed but packages, Bazel's output and ~/.cache/berth.
set -euo pipefail

tree=$(dirname "$(readlink -f "$0")")
export HOME=${HOME:-/root} LC_ALL=C.UTF-8
cache=${XDG_CACHE_HOME:-$HOME/.cache}/berth/quickstart

in_vm=
source_directory=
programs=
for argument in "$@"; do
  case "$argument" in
    --vm) in_vm=1 ;;
    --source=*) source_directory=$(readlink -f "${argument#*=}") ;;
    --programs=*) programs=${argument#*=} ;; # Second half, on the machine that has nbd.
    *)
      sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
      exit 2
      ;;
  esac
done

# --- Telling what happens, and how long it took.

doing=
began=
step() {
  step_done
  doing=$*
  began=$EPOCHREALTIME
}
step_done() {
  [[ -z $doing ]] || awk -v a="$began" -v b="$EPOCHREALTIME" -v what="$doing" \
    'BEGIN { printf "%8.2f s  %s\n", b - a, what }'
  doing=
}
say() { printf '            %s\n' "$*"; }
fail() {
  echo "quickstart: $*" >&2
  exit 1
}

# Copies folders of /usr/share/doc until some 16 MiB are together.
sample_of_documentation() {
  step "sample of /usr/share/doc"
  rm -rf "$cache/sample"
  mkdir "$cache/sample"
  local folder kib sum=0 chosen=()
  while read -r kib folder; do
    ((sum + kib <= 16384)) || continue
    sum=$((sum + kib))
    chosen+=("$folder")
    ((${#chosen[@]} < 400)) || break
  done < <(find /usr/share/doc -mindepth 1 -maxdepth 1 -type d -exec du -sk {} + | sort -k2)
  cp --archive --target-directory="$cache/sample" "${chosen[@]}"
  source_directory=$cache/sample
}

# --- First half: packages, build, and an image of real files.

prepare() {
  [[ $(id -u) -eq 0 ]] || fail "run me as root: attaching and mounting need it"
  if [[ -z $in_vm ]]; then
    modprobe nbd 2>/dev/null || true
    # A container may see the module and still have neither its devices nor the right to mount.
    if ! [[ -b /dev/nbd0 ]] || ! unshare --mount true 2>/dev/null; then
      in_vm=1
    fi
  fi

  step "Debian packages"
  local without='^(clang-.*|fio|libclang.*|nbd-client|nbd-server|nbdkit|shellcheck|linux-image-cloud-amd64|xfsprogs)$'
  # Where the kernel has nbd, another kernel has no business on this machine.
  [[ -n $in_vm ]] || without="${without%)\$}|linux-image-.*|qemu-system-.*)\$"
  "$tree/.ci/setup.sh" --without="$without"

  step "build of berthd and berthctl (optimized)"
  local log
  log=$(mktemp)
  if ! (cd "$tree" && bazel build --config=opt //control:berthd //control:berthctl) >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    rm -f "$log"
    fail "the build failed"
  fi
  rm -f "$log"
  programs=$(cd "$tree" && bazel info --config=opt bazel-bin 2>/dev/null)/control

  mkdir -p "$cache"
  if [[ -z $source_directory ]]; then
    source_directory=/usr/share/doc
    [[ -z $in_vm ]] || sample_of_documentation
  fi
  step "image with an ext4 file system that holds $source_directory"
  [[ -d $source_directory ]] || fail "$source_directory is not a directory"
  local mib
  mib=$(du -sm --apparent-size "$source_directory" | cut -f1)
  rm -f "$cache/files.raw"
  # Half as much again for blocks that are not full, and room to write.
  truncate -s "$((mib + mib / 2 + 48))M" "$cache/files.raw"
  mkfs.ext4 -q -F -m 0 -N "$(($(find "$source_directory" | wc -l) + 1024))" -d "$source_directory" "$cache/files.raw"
  step_done

  local again=("$tree/quickstart.sh" "--source=$source_directory" "--programs=$programs")
  if [[ -z $in_vm ]]; then
    say "This kernel has nbd: everything below happens on it."
    exec "${again[@]}"
  fi
  say "This machine has no usable /dev/nbd: everything below happens in a virtual machine that has."
  exec "$tree/tests/kernel/vm/run.sh" --timeout=600 -- "${again[@]}"
}

# --- Second half: the main job.

work=
daemon=
mounted=
attached=
cleanup() {
  local status=$?
  if [[ $status -ne 0 && -n $doing ]]; then
    echo "quickstart: this failed: $doing" >&2
    [[ ! -s $work/berthd.log ]] || sed 's/^/berthd: /' "$work/berthd.log" >&2
  fi
  [[ -z $mounted ]] || umount "$work/mnt" || true
  [[ -z $attached ]] || berthctl detach files --allow-missing || true
  if [[ -n $daemon ]]; then
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
  fi
  [[ -z $work ]] || rm -rf "$work"
}

berthctl() { "$programs/berthctl/berthctl" --endpoint="unix:$work/berthd.sock" "$@"; }

await_berthd() {
  local i
  for ((i = 0; i < 600; i++)); do
    kill -0 "$daemon" 2>/dev/null || fail "berthd ended before it was ready"
    if grep -q '^INFO ready' "$work/berthd.log"; then return; fi
    sleep 0.05
  done
  fail "berthd was not ready in 30 s"
}

main_job() {
  work=$(mktemp -d "${TMPDIR:-/tmp}/berth-quickstart.XXXXXX")
  trap cleanup EXIT
  trap 'exit 143' TERM
  trap 'exit 130' INT HUP
  mkdir "$work/images" "$work/mnt"

  step "copy of the image, to work on"
  cp --sparse=always "$cache/files.raw" "$work/images/files.raw"

  step "berthd started"
  "$programs/berthd" --listen="unix:$work/berthd.sock" --nbd="unix:$work/nbd.sock" --state-dir="$work/state" \
    --image-root="$work/images" >"$work/berthd.log" 2>&1 &
  daemon=$!
  await_berthd

  step "export created: berthctl export create files …/files.raw"
  berthctl export create files "$work/images/files.raw" >/dev/null

  step "attached through gRPC: berthctl attach files"
  attached=1
  local device
  device=$(berthctl attach files)
  [[ -b $device ]] || fail "attach printed \"$device\", which is no block device"
  step_done
  say "It is $device, $(($(<"/sys/block/${device#/dev/}/size") / 2048)) MiB."

  step "mounted: mount $device"
  mount "$device" "$work/mnt"
  mounted=1

  step "every file compared with its source"
  diff --recursive --no-dereference --exclude=lost+found "$source_directory" "$work/mnt"
  step_done
  local files
  files=$(find "$work/mnt" -type f | wc -l)
  [[ $files -gt 0 ]] || fail "$source_directory holds no files: nothing was compared"
  say "$files files, all equal."

  step "16 MiB written, synced, unmounted"
  head -c 16M /dev/urandom >"$work/written"
  cp "$work/written" "$work/mnt/written"
  sync --file-system "$work/mnt"
  umount "$work/mnt"
  mounted=

  step "detached: berthctl detach files"
  berthctl detach files
  attached=
  [[ $(<"/sys/block/${device#/dev/}/size") -eq 0 ]] || fail "$device still has a size"

  step "file system checked in the image: e2fsck -f -n; what was written is there"
  e2fsck -f -n "$work/images/files.raw" >"$work/e2fsck.log" 2>&1 || {
    cat "$work/e2fsck.log" >&2
    fail "e2fsck found faults"
  }
  debugfs -R "cat /written" "$work/images/files.raw" 2>/dev/null | cmp - "$work/written"
  rm "$work/written"

  local uri="nbd+unix:///files?socket=$work/nbd.sock"
  step "the same export on a Unix socket: nbdinfo"
  nbdinfo "$uri" >"$work/nbdinfo"
  step_done
  grep -E 'protocol:|export-size:|content:|can_multi_conn:' "$work/nbdinfo" | sed 's/^[[:space:]]*/            /'

  step "read with nbdcopy, and compared with the image"
  nbdcopy "$uri" "$work/copy.raw"
  cmp "$work/copy.raw" "$work/images/files.raw"
  rm "$work/copy.raw"

  step "berthd stopped"
  kill "$daemon"
  local status=0
  wait "$daemon" || status=$?
  daemon=
  [[ $status -eq 0 ]] || fail "berthd ended with status $status"
  step_done
}

if [[ -z $programs ]]; then
  prepare
fi
main_job
say "All done: $SECONDS s from berthd's start on."
