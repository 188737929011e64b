#!/bin/bash
# Spin goes through every state of attachment.pml and finds no assertion that fails; and it finds one as soon as the model
# leaves out what the assertions rest on.
set -euo pipefail

model=$(readlink -f "$1")
cd "$TEST_TMPDIR"

# verify NAME [OPTION...]: the number of errors that the verifier finds.
verify() {
  local name=$1
  shift
  spin -a "$@" "$model" >"$name.spin"
  gcc -O2 -w -DSAFETY -DCOLLAPSE -o "$name" pan.c
  "./$name" -m100000 >"$name.out"
  # A search that was cut short proves nothing.
  if grep -q -e truncated -e 'max search depth too small' "$name.out"; then
    cat "$name.out" >&2
    return 1
  fi
  sed -n 's/.*errors: \([0-9]*\).*/\1/p' "$name.out"
}

command -v spin >/dev/null || {
  echo "no spin: apt-get install spin"
  exit 1
}
errors=$(verify whole)
if [[ $errors != 0 ]]; then
  cat whole.out whole.spin
  spin -t -p "$model" | tail -n 200
  exit 1
fi
grep 'states, stored' whole.out
for missing in NO_FENCE NO_INTENT BY_NUMBER; do
  errors=$(verify "$missing" "-D$missing")
  if [[ $errors == 0 ]]; then
    echo "the model does not notice $missing"
    exit 1
  fi
  grep 'assertion violated' "$missing.out"
done
