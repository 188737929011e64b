#!/bin/bash
# Checks the form of every file that git knows: clang-format for C++, buildifier for Bazel, shellcheck for shell.
#
#   .ci/format.sh [--fix] [clang-format|buildifier|shellcheck]...
#
# --fix rewrites what the first two would complain about.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

readonly BUILDIFIER_VERSION=8.2.1

fix=
checks=()
for argument in "$@"; do
  case "$argument" in
    --fix) fix=1 ;;
    clang-format | buildifier | shellcheck) checks+=("$argument") ;;
    *)
      echo "format: unknown argument $argument; see the head of $0" >&2
      exit 2
      ;;
  esac
done
[[ ${#checks[@]} -gt 0 ]] || checks=(clang-format buildifier shellcheck)

# Tracked files and new ones alike, but none that was deleted.
files() {
  local file
  git ls-files --cached --others --exclude-standard -- "$@" | sort -u | while IFS= read -r file; do
    [[ -f $file ]] && printf '%s\0' "$file"
  done
}

# Debian has no package of it, npm has the binary. It is kept in the cache, outside of the tree.
buildifier_program() {
  local program=${XDG_CACHE_HOME:-$HOME/.cache}/berth/buildifier-$BUILDIFIER_VERSION
  if [[ ! -x $program ]]; then
    if ! command -v npm >/dev/null; then
      DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 install -y --no-install-recommends npm \
        >/dev/null 2>&1 </dev/null || {
        echo "format: no npm, and apt-get could not install it" >&2
        return 1
      }
    fi
    local folder
    folder=$(mktemp -d)
    npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" \
      "@bazel/buildifier@$BUILDIFIER_VERSION" >&2
    mkdir -p "$(dirname "$program")"
    install -m 0755 "$folder/node_modules/@bazel/buildifier/buildifier-linux_$(dpkg --print-architecture)" "$program.new"
    mv "$program.new" "$program"
    rm -rf "$folder"
  fi
  echo "$program"
}

run_check() {
  case "$1" in
    clang-format)
      if [[ -n $fix ]]; then
        files '*.h' '*.cc' | xargs -0 -r clang-format-14 -i
      else
        files '*.h' '*.cc' | xargs -0 -r clang-format-14 --dry-run -Werror
      fi
      ;;
    buildifier)
      local program mode=check
      program=$(buildifier_program) || return 1
      [[ -z $fix ]] || mode=fix
      files '*.bazel' '*.bzl' WORKSPACE '*/WORKSPACE' | xargs -0 -r "$program" -mode="$mode" -lint=off
      ;;
    shellcheck)
      # An "info" is a matter of taste.
      {
        files '*.sh'
        files '.ci/run'
      } | xargs -0 -r shellcheck --severity=warning
      ;;
  esac
}

status=0
for check in "${checks[@]}"; do
  if ! run_check "$check"; then
    echo "format: $check found something${fix:+ that it could not repair}; .ci/format.sh --fix repairs most of it" >&2
    status=1
  fi
done
exit "$status"
