#!/bin/bash
# Builds a fuzz_test as a real fuzzer (clang, libFuzzer, address and undefined behaviour sanitizers) and runs it.
#
#   tests/fuzz/run.sh //tests/fuzz:handshake_fuzz 60 [LIBFUZZER-OPTION...]
#
# It starts from the corpus in the tree. What it finds that reaches new code is kept in ~/.cache/berth/fuzz/TARGET; an
# input that crashes is written to the working directory, and belongs into the corpus together with the repair.
set -euo pipefail

if [[ $# -lt 2 ]]; then
  sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
target=$1
seconds=$2
shift 2

name=${target##*[:/]}
here=$PWD
cd "$(dirname "$(readlink -f "$0")")/../.."
bazel build --config=fuzz "$target"
program=$(bazel cquery --config=fuzz --output=starlark \
  --starlark:expr='target.files_to_run.executable.path' "$target" 2>/dev/null)
bazel_root=$(bazel info --config=fuzz execution_root 2>/dev/null)
found=${XDG_CACHE_HOME:-$HOME/.cache}/berth/fuzz/$name
mkdir -p "$found"
seeds=()
while IFS= read -r file; do
  seeds+=("$(dirname "$PWD/$file")")
done < <(bazel query --output=label "labels(srcs, ${target}_corpus)" 2>/dev/null | sed 's|^//||; s|:|/|')
mapfile -t seeds < <(printf '%s\n' "${seeds[@]}" | sort -u)
cd "$here"
exec "$bazel_root/$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 "$@" "$found" "${seeds[@]}"
