#!/bin/bash
# Runs a command in a virtual machine that has Debian's own kernel, a real /dev/nbd, and this machine's files.
#
#   run.sh [--kernel=6.12] [--modules="nbd"] [--memory=1280] [--cpus=2] [--timeout=SECONDS]
#          [--expect-kernel-message=REGEX]... [--] COMMAND [ARGUMENT...]
#
# The command sees the machine's own root file system read-only (over virtiofs), with empty file systems of its own on
# /tmp, /run, /var/tmp and /dev/shm, the same working directory and the same environment. Its output comes out here as it is written;
# its exit status is this script's. What it writes to $TEST_UNDECLARED_OUTPUTS_DIR comes back when that is set here.
#
# The run also fails when the kernel complained (BUG, WARNING, Oops, hung task, I/O error) and no
# --expect-kernel-message announced it. Nothing is left behind, whichever way it ends. Several can run at once.
set -euo pipefail

COMPLAINTS='BUG:|BUG at|WARNING:|Oops|general protection|Call Trace|hung task|blocked for more than|I/O error|EXT4-fs error|XFS .*(error|Corruption)'
readonly COMPLAINTS
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")

die() {
  echo "vm: $*" >&2
  exit 1
}

kernel=6.12
modules=nbd
memory=1280
cpus=2
# Bazel kills a test at TEST_TIMEOUT; ending a little before that leaves the kernel's messages in the log.
timeout=$((${TEST_TIMEOUT:-900} - 5))
expected=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --kernel=*) kernel=${1#*=} ;;
    --modules=*) modules=${1#*=} ;;
    --memory=*) memory=${1#*=} ;;
    --cpus=*) cpus=${1#*=} ;;
    --timeout=*) timeout=${1#*=} ;;
    --expect-kernel-message=*) expected+=("${1#*=}") ;;
    --)
      shift
      break
      ;;
    -*) die "unknown option $1; see the head of $0" ;;
    *) break ;;
  esac
  shift
done
[[ $# -gt 0 ]] || die "no command; see the head of $0"

# --- What must be installed.

# The PATH of Bazel and of an ordinary user has no sbin.
export PATH=$PATH:/usr/sbin:/sbin

qemu=$(command -v qemu-system-x86_64) || die "no qemu-system-x86_64: apt-get install qemu-system-x86"
virtiofsd=/usr/lib/qemu/virtiofsd
[[ -x $virtiofsd ]] || die "no $virtiofsd: apt-get install qemu-system-common"
for pair in ip:iproute2 modprobe:kmod setpriv:util-linux; do
  command -v "${pair%:*}" >/dev/null || die "no ${pair%:*}: apt-get install ${pair#*:}"
done
image=
for candidate in /boot/vmlinuz-"$kernel".*-cloud-amd64; do
  [[ -d /lib/modules/${candidate#/boot/vmlinuz-} ]] && image=$candidate
done
if [[ -z $image ]]; then
  case "$kernel" in
    6.1) package=linux-image-cloud-amd64 ;;
    *) package=linux-image-$kernel-cloud-amd64 ;;
  esac
  die "no kernel $kernel (/boot/vmlinuz-$kernel.*-cloud-amd64 with its /lib/modules): apt-get install $package"
fi

# --- A folder for this run, and its removal whatever happens.

run=$(mktemp -d "${TMPDIR:-/tmp}/berth-vm.XXXXXX")
started=()
# shellcheck disable=SC2317  # Called by the trap.
cleanup() {
  local pid
  for pid in "${started[@]}"; do
    kill -KILL "$pid" 2>/dev/null || true
  done
  wait 2>/dev/null || true
  rm -rf "$run"
}
trap cleanup EXIT
trap 'exit 143' TERM
trap 'exit 130' INT HUP

# --- What the machine inside needs to know.

out=$run/out
mkdir "$out"
cp "$here/init.sh" "$out/init.sh"
{
  printf 'command=('
  printf '%q ' "$@"
  printf ')\n'
  printf 'working_directory=%q\n' "$PWD"
  printf 'modules=%q\n' "$modules"
} >"$out/job"
export -p | grep -v -E '^declare -x (OLDPWD|PWD|SHLVL|TMPDIR|TEST_TMPDIR|TEST_[A-Z_]*(FILE|DIR)|XML_OUTPUT_FILE|COVERAGE[A-Z_]*)(=|$)' \
  >"$out/environment" || true
for name in TEST_SRCDIR RUNFILES_DIR JAVA_RUNFILES RUNFILES_MANIFEST_FILE; do
  [[ -n ${!name:-} ]] && printf 'declare -x %s=%q\n' "$name" "${!name}" >>"$out/environment"
done
# A fresh /tmp would hide what the command needs of this machine's one: there the fresh one is laid over it.
for path in "$PWD" "${HOME:-/}" "$(command -v "$1" || true)" "$@"; do
  [[ -e $path && $(readlink -f "$path") == /tmp/* ]] || continue
  echo 'keep_tmp=1' >>"$out/job"
  break
done

# --- A kernel that has virtiofs as a module needs an initramfs to reach the root.

# make_initramfs RELEASE: a shell, mount, switch_root and insmod with their libraries, and the modules in order.
make_initramfs() {
  local root=$run/initramfs program library module number=10
  mkdir -p "$root/modules" "$root/root"
  for program in /bin/dash /bin/kmod /bin/mount /sbin/switch_root; do
    while read -r library; do
      install -D "$library" "$root$library"
    done < <(echo "$program" && ldd "$program" | grep -o '/[^ ]*')
  done
  while read -r _ module; do
    cp "$module" "$root/modules/$number-$(basename "$module")"
    number=$((number + 1))
  done < <(modprobe -S "$1" --show-depends -a virtio_pci virtiofs | grep ^insmod | awk '!seen[$2]++')
  ln -s kmod "$root/bin/insmod"
  cat >"$root/init" <<END
#!/bin/dash
for module in /modules/*; do /bin/insmod "\$module"; done
/bin/mount -t virtiofs berthroot /root
exec /sbin/switch_root /root $out/init.sh
END
  chmod +x "$root/init"
  (cd "$root" && find . | cpio --quiet -o -H newc >"$run/initrd")
}

release=${image#/boot/vmlinuz-}
boot=()
if ! grep -q '^CONFIG_VIRTIO_FS=y' "/boot/config-$release"; then
  command -v cpio >/dev/null || die "no cpio: apt-get install cpio"
  make_initramfs "$release"
  boot=(-initrd "$run/initrd")
fi

# --- An accelerator that really runs instructions: /dev/kvm may exist and its virtual CPU be a slow, partial imitation.

accelerator=(-accel "tcg,thread=multi" -cpu max)
if [[ -w /dev/kvm ]]; then
  # A whole BIOS: fld1, which no emulation of KVM's knows; mov $0x10, %al; out %al, $0xf4; hlt. The exit device turns
  # 0x10 into status 33. Where fld1 is not run the machine only stops, with a message.
  truncate -s 65520 "$run/probe"
  printf '\xd9\xe8\xb0\x10\xe6\xf4\xf4' >>"$run/probe"
  truncate -s 65536 "$run/probe"
  timeout 5 "$qemu" -accel kvm -m 16 -nodefaults -display none -no-reboot -bios "$run/probe" \
    -device isa-debug-exit,iobase=0xf4,iosize=1 >"$run/probe.log" 2>&1 </dev/null &
  probe=$!
  while kill -0 "$probe" 2>/dev/null; do
    if grep -qs 'KVM internal error' "$run/probe.log"; then
      kill "$probe" 2>/dev/null || true
      break
    fi
    sleep 0.02
  done
  status=0
  wait "$probe" || status=$?
  [[ $status -ne 33 ]] || accelerator=(-accel kvm -cpu host)
fi

# --- Start it.

# A process that outlives this script, killed with -9, would keep its memory: each dies with its parent.
begin=$EPOCHREALTIME
setpriv --pdeathsig KILL "$virtiofsd" --socket-path="$run/fs.sock" --rlimit-nofile=0 \
  -o source=/ -o cache=always -o sandbox=chroot -o no_posix_lock -o xattr -o log_level=err >"$run/virtiofsd.log" 2>&1 &
started+=($!)
for ((i = 0; i < 200; i++)); do
  [[ -S $run/fs.sock ]] && break
  kill -0 "${started[0]}" 2>/dev/null || die "virtiofsd ended: $(cat "$run/virtiofsd.log")"
  sleep 0.05
done
[[ -S $run/fs.sock ]] || die "virtiofsd made no socket in 10 s: $(cat "$run/virtiofsd.log")"

mkfifo "$run/output"
cat "$run/output" &
started+=($!)

# Soft lockups and stalls are what a busy host does to an emulated CPU: they say nothing about Berth.
append="rootfstype=virtiofs root=berthroot rw init=$out/init.sh console=ttyS0 panic=-1 loglevel=5 nosoftlockup"
append+=" rcupdate.rcu_cpu_stall_suppress=1 mitigations=off random.trust_cpu=on berth.out=$out"
setpriv --pdeathsig KILL timeout --foreground --kill-after=5 "$timeout" setpriv --pdeathsig KILL "$qemu" "${accelerator[@]}" -machine q35 \
  -smp "$cpus" -m "$memory" -object "memory-backend-memfd,id=mem,size=${memory}M,share=on" -numa node,memdev=mem \
  -nodefaults -display none -no-reboot -kernel "$image" "${boot[@]}" -append "$append" \
  -chardev "socket,id=fs,path=$run/fs.sock" -device vhost-user-fs-pci,chardev=fs,tag=berthroot \
  -chardev "file,id=console,path=$run/console" -serial chardev:console \
  -chardev "file,id=output,path=$run/output" -device virtio-serial-pci -device virtserialport,chardev=output,name=output \
  -device virtio-rng-pci \
  </dev/null >"$run/qemu.log" 2>&1 &
started+=($!)
qemu_status=0
wait "${started[2]}" || qemu_status=$?
# QEMU that ended before it opened the pipe would leave its reader waiting.
: 3<>"$run/output"
wait "${started[1]}" || true

# --- Judge the run.

elapsed=$(awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
echo "vm: Linux $release, ${accelerator[1]%%,*}, $cpus CPUs, booted in $(cat "$out/booted" 2>/dev/null || echo '?') s, ${elapsed} s in all" >&2
if [[ -n ${TEST_UNDECLARED_OUTPUTS_DIR:-} ]]; then
  cp -r "$run/console" "$TEST_UNDECLARED_OUTPUTS_DIR/" || true
  cp -r "$out/files/." "$out/dmesg" "$TEST_UNDECLARED_OUTPUTS_DIR/" 2>/dev/null || true
fi
if [[ -n ${XML_OUTPUT_FILE:-} && -s $out/test.xml ]]; then
  cp "$out/test.xml" "$XML_OUTPUT_FILE"
fi
if [[ ! -s $out/status ]]; then
  tail -n 60 "$run/console" >&2 || true
  cat "$run/qemu.log" "$run/virtiofsd.log" >&2
  [[ $qemu_status -ne 124 ]] || die "the command did not end in $timeout s"
  die "the machine ended before the command did (QEMU's status $qemu_status)"
fi
status=$(<"$out/status")
unexpected=$(grep -E "$COMPLAINTS" "$out/dmesg" || true)
for pattern in "${expected[@]}"; do
  unexpected=$(grep -v -E -e "$pattern" <<<"$unexpected" || true)
done
if [[ -n $unexpected ]]; then
  echo "vm: the kernel complained, and no --expect-kernel-message announced it:" >&2
  echo "$unexpected" >&2
  [[ $status -ne 0 ]] || status=1
fi
exit "$status"
