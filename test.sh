#!/bin/bash
# Runs every test there is, and installs what they need first (Debian 12, root).
#
#   ./test.sh             everything
#   ./test.sh --fast      format, and the tests of the default configuration that need no virtual machine
#   ./test.sh STAGE...    some of: format default asan tsan clang opt
#
# The last line is "N passed, N failed, N skipped". It counts test cases, and one for each check that has none (a format
# check, a build). A target that does not build is one that failed.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

export HOME=${HOME:-/root} LC_ALL=C.UTF-8
readonly CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/berth
readonly CACHE_LIMIT_MIB=12288

fast=
stages=()
for argument in "$@"; do
  case "$argument" in
    --fast) fast=1 ;;
    format | default | asan | tsan | clang | opt) stages+=("$argument") ;;
    *)
      sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
      exit 2
      ;;
  esac
done
if [[ ${#stages[@]} -eq 0 ]]; then
  stages=(format default asan tsan clang opt)
  [[ -z $fast ]] || stages=(format default)
fi

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

# What runs at the moment, with all its children: a process group of its own, so that it ends with this script. Bazel's
# client would go on otherwise, and with it the tests.
running=
run() {
  local status=0
  set -m
  "$@" </dev/null &
  running=$!
  set +m
  wait "$running" || status=$?
  running=
  return "$status"
}
# stopped SIGNAL EXIT_STATUS
stopped() {
  trap '' INT TERM HUP
  if [[ -n $running ]]; then
    kill -TERM -- "-$running" 2>/dev/null || true
    wait "$running" 2>/dev/null || true
  fi
  echo "== stopped by SIG$1" >&2
  exit "$2"
}
trap 'stopped INT 130' INT
trap 'stopped TERM 143' TERM
trap 'stopped HUP 129' HUP

# Folders whose code is compiled with sanitizers: everything but gRPC's users, which Debian's uninstrumented gRPC would
# drown in false reports.
sanitized=()
for folder in image nbd netlink tests/conformance tests/fakes tests/fuzz tests/hostile; do
  [[ -d $folder ]] && sanitized+=("//$folder/...")
done

# GCC 12's sanitizers do not know address spaces with more random bits than this.
sanitizer_options=()
if [[ $(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 28) -gt 28 ]] && setarch -R true 2>/dev/null; then
  sanitizer_options=("--run_under=setarch -R")
fi

# bazel_tests STAGE OPTION... TARGET...
bazel_tests() {
  local stage=$1 status=0
  shift
  run bazel test --keep_going --color=no --show_progress_rate_limit=20 --noshow_loading_progress \
    --build_event_json_file="$results/$stage.json" "$@" || status=$?
  /usr/bin/python3 .ci/results.py stage "$stage" "$results/$stage.json" "$status" "$results/cases"
}

# check NAME COMMAND...
check() {
  local name=$1 status=0
  shift
  run "$@" || status=$?
  /usr/bin/python3 .ci/results.py check "$name" "$status" "$results/cases"
}

# shipped KIND: labels of the rules of a kind that no test owns. The tests gain nothing from a build that does not run
# them, and would take as long again.
shipped() {
  bazel query --noshow_progress "kind(\"$1\", //...) except attr(testonly, 1, //...)"
}

# build CONFIGURATION LABELS [LABEL...]
build() {
  local configuration=$1 labels
  mapfile -t labels <<<"$2"
  shift 2
  bazel build --keep_going --color=no --show_progress_rate_limit=20 --noshow_loading_progress \
    "--config=$configuration" "${labels[@]}" "$@"
}

# Every library, as clang is asked for its opinion on each.
clang_build() {
  local labels
  labels=$(shipped 'cc_(library|binary) rule')
  build clang "$labels"
}

# Programs alone: an optimized library would be compiled twice, for programs and for shared objects.
opt_build() {
  local labels
  labels=$(shipped 'cc_binary rule')
  build opt "$labels" //tests/bench
}

run_stage() {
  case "$1" in
    format)
      check clang-format .ci/format.sh clang-format
      check buildifier .ci/format.sh buildifier
      check shellcheck .ci/format.sh shellcheck
      ;;
    default)
      if [[ -n $fast ]]; then
        bazel_tests default --test_tag_filters=-vm --build_tests_only //...
      else
        bazel_tests default //...
      fi
      ;;
    asan) bazel_tests asan --config=asan --build_tests_only --test_tag_filters=-vm,-no-asan "${sanitizer_options[@]}" "${sanitized[@]}" ;;
    tsan) bazel_tests tsan --config=tsan --build_tests_only --test_tag_filters=-vm,-no-tsan "${sanitizer_options[@]}" "${sanitized[@]}" ;;
    clang) check clang-build clang_build ;;
    opt) check opt-build opt_build ;;
  esac
}

echo "== setup"
begin=$SECONDS
run .ci/setup.sh
echo "== setup took $((SECONDS - begin)) s"
for stage in "${stages[@]}"; do
  echo "== $stage"
  begin=$SECONDS
  run_stage "$stage"
  echo "== $stage took $((SECONDS - begin)) s"
done

# Bazel 4 never empties its disk cache.
if [[ -d $CACHE/bazel && $(du -sm "$CACHE/bazel" | cut -f1) -gt $CACHE_LIMIT_MIB ]]; then
  rm -rf "$CACHE/bazel"
fi
[[ -z ${CI:-} ]] || bazel shutdown >/dev/null 2>&1 || true
echo "== all took $SECONDS s"
/usr/bin/python3 .ci/results.py total "$results/cases"
