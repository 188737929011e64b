#!/bin/bash
# systemd accepts the unit, with no warning, and no dependency in it stops berthd before the mounts.
set -euo pipefail

unit=$1
copy=$TEST_TMPDIR/berthd.service
# The program itself is not installed where the tests run.
sed 's|^ExecStart=/usr/bin/berthd|ExecStart=/bin/true|; s|^Documentation=.*||' "$unit" >"$copy"
grep -q '^ExecStart=/bin/true' "$copy"

complaints=$(systemd-analyze verify --man=no "$copy" 2>&1) || {
  echo "systemd-analyze verify failed: $complaints"
  exit 1
}
if grep -F berthd.service <<<"$complaints"; then
  echo "systemd-analyze verify complains about berthd.service"
  exit 1
fi

for setting in '^(Requires|BindsTo|Requisite|PartOf|RequiresMountsFor|StateDirectory|PrivateTmp)=' '^Conflicts='; do
  if grep -E "$setting" "$unit"; then
    echo "this setting would stop berthd while its devices are still mounted"
    exit 1
  fi
done
grep -qx 'DefaultDependencies=no' "$unit"
grep -qx 'Type=notify' "$unit"
