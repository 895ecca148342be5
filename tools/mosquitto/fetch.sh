#!/usr/bin/env bash
# Brings mosquitto, the broker that is not ours: the machine's, or Debian's package unpacked under the cache. Prints the folder with
# the programs `mosquitto` and `mosquitto_passwd`. Where it cannot be had it prints why, and exits with 3.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse/mosquitto"
bin="$cache/bin"
mkdir -p "$cache"
if command -v flock >/dev/null; then exec 9>"$cache/lock"; flock 9; fi

works() { ("$1" -h 2>/dev/null || true) | grep -q "^mosquitto version"; }

if [ -x "$bin/mosquitto" ] && works "$bin/mosquitto"; then echo "$bin"; exit; fi
rm -rf "$bin"
mkdir -p "$bin"
PATH="$PATH:/usr/sbin:/usr/local/sbin"
if own=$(command -v mosquitto) && works "$own" && passwd=$(command -v mosquitto_passwd); then
    ln -s "$own" "$passwd" "$bin/"
    echo "$bin"
    exit
fi
status=0
libraries=$("$here/../debian/unpack.sh" "$cache/debian" mosquitto) || status=$?
if [ "$status" != 0 ]; then echo "$libraries"; exit "$status"; fi
for program in usr/sbin/mosquitto usr/bin/mosquitto_passwd; do
    # shellcheck disable=SC2016 # the wrapper expands its arguments
    printf '#!/bin/sh\nexport LD_LIBRARY_PATH="%s"\nexec "%s" "$@"\n' "$libraries" "$cache/debian/$program" \
        >"$bin/${program##*/}"
    chmod +x "$bin/${program##*/}"
done
works "$bin/mosquitto" || { echo "Debian's mosquitto does not run here"; exit 3; }
echo "$bin"
