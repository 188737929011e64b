#!/bin/bash
# Installs the Debian packages of .ci/packages.txt that are missing. Needs root only when there are any.
#
#   .ci/setup.sh [--without=REGEX]   leaves out the packages whose names match
set -euo pipefail

without='^$'
for argument in "$@"; do
  case "$argument" in
    --without=*) without=${argument#*=} ;;
    *)
      echo "setup: unknown option $argument" >&2
      exit 2
      ;;
  esac
done

list=$(dirname "$(readlink -f "$0")")/packages.txt
missing=()
while IFS= read -r package; do
  [[ $package =~ $without ]] && continue
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $status == installed ]] || missing+=("$package")
done <"$list"
[[ ${#missing[@]} -gt 0 ]] || exit 0

if [[ $(id -u) -ne 0 ]]; then
  echo "setup: run as root, or install these packages first: ${missing[*]}" >&2
  exit 1
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt_options=(-qq -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
# A machine that lives for one run need not wait for its disk after each file.
[[ -z ${CI:-} ]] || apt_options+=(-o DPkg::Options::=--force-unsafe-io)
apt-get "${apt_options[@]}" update
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! apt-get "${apt_options[@]}" install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1 </dev/null; then
  tail -n 40 "$log" >&2
  echo "setup: apt-get could not install ${missing[*]}" >&2
  for package in "${missing[@]}"; do
    apt-cache show "$package" >/dev/null 2>&1 ||
      echo "setup: apt's sources have no $package; do they hold all of Debian 12, bookworm-security too?" >&2
  done
  exit 1
fi
