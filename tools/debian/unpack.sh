#!/usr/bin/env bash
# Unpacks Debian packages, with what they need and this machine has not, into a folder: nothing is installed, nothing is locked, and
# nobody need be root.
#
# Usage: unpack.sh FOLDER ALTERNATIVE.. [-- ALSO..]
# The first alternative that there is, and whatever stands after `--`. Prints a line for LD_LIBRARY_PATH. Where it cannot be done it
# prints why, and exits with 3. APT_STATUS names another list of what is installed, so that it can be tried where everything is.
set -euo pipefail
export LC_ALL=C

folder=$1
shift
alternatives=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do alternatives+=("$1"); shift; done
[ $# = 0 ] || shift
also=("$@")

cannot() { echo "$*"; exit 3; }
[ "$(uname -s)" = Linux ] || cannot "Debian's packages are for Linux, and this is $(uname -s)"
for program in apt-get dpkg-deb tar; do
    command -v "$program" >/dev/null || cannot "there is no $program: it needs Debian or something near it"
done

work="$folder.part"
log="$work/log"
rm -rf "$work"
mkdir -p "$work/archives/partial" "$work/tree"
: >"$log"
options=(-y -qq --no-install-recommends -o Debug::NoLocking=1 -o "Dir::Cache::archives=$work/archives"
    -o "Dir::State::status=${APT_STATUS:-/var/lib/dpkg/status}" -o "APT::Sandbox::User=$(id -un)")
# apt resolves as for an installation, and then only downloads.
fetch() {
    local package
    for package in "${alternatives[@]}"; do
        if apt-get "${options[@]}" --download-only install "$package" "${also[@]}" >>"$log" 2>&1; then return; fi
    done
    return 1
}
if ! fetch; then
    # The machine's own lists may be missing or old.
    mkdir -p "$work/lists/partial"
    options+=(-o "Dir::State::lists=$work/lists" -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache=")
    apt-get "${options[@]}" update >>"$log" 2>&1 && fetch ||
        cannot "apt gives no ${alternatives[0]}: $(grep '^E:' "$log" | tail -n 1)"
fi
for package in "$work"/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x --no-same-owner -C "$work/tree" || cannot "$package cannot be unpacked"
done
rm -rf "$folder"
mv "$work/tree" "$folder"
rm -rf "$work"
triple=$(cc -print-multiarch 2>/dev/null || echo "$(uname -m)-linux-gnu")
# Packages keep private libraries in folders of their own (pulseaudio's), and find them by a path that is absolute.
private=$(find "$folder/usr/lib/$triple" -mindepth 2 -maxdepth 2 -name 'lib*.so*' -printf ':%h\n' | sort -u | tr -d '\n')
echo "$folder/usr/lib/$triple:$folder/lib/$triple$private"
