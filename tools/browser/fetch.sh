#!/usr/bin/env bash
# Brings what tests the console in a browser: Playwright for Python with axe-core, and a Chromium. Nothing is installed and nobody
# need be root. A Chromium that is on the machine is taken (or the one that CHROMIUM names); else Playwright's own is downloaded;
# else Debian's packages are, with all that they depend on, and unpacked under the cache.
#
# Prints the folder: `packages/` for PYTHONPATH, and `chromium`, a program. Where it cannot be had it prints why, and exits with 3.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "$0")" && pwd)
list="$here/../../tests/python/browser.txt"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse/browser"
python="${PYTHON:-python3}"

say() { echo "browser: $*" >&2; }
cannot() { echo "$*"; exit 3; }

mkdir -p "$cache"
if command -v flock >/dev/null; then exec 9>"$cache/lock"; flock 9; fi
log="$cache/log"
: >"$log"

if ! cmp -s "$list" "$cache/packages.txt"; then
    say "installing Playwright for Python (55 MB)"
    rm -rf "$cache/packages"
    PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --disable-pip-version-check --target "$cache/packages" \
        -r "$list" >>"$log" 2>&1 || cannot "pip gives no Playwright: $(tail -n 1 "$log")"
    cp "$list" "$cache/packages.txt"
fi

# Whether a program is a Chromium that draws a page here: without any font it ends at the first button.
works() {
    local flags=(--headless --disable-gpu --no-first-run)
    [ "$(id -u)" != 0 ] || flags+=(--no-sandbox)
    rm -f "$cache/drawn.png"
    timeout 60 "$1" "${flags[@]}" --user-data-dir="$cache/profile" --screenshot="$cache/drawn.png" \
        'data:text/html,<input><select><option>it works</select><button>it works</button>' >>"$log" 2>&1 && [ -s "$cache/drawn.png" ]
}

# A wrapper and not a link: the program looks for its files beside itself.
take() {
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$1" >"$cache/chromium.new"
    chmod +x "$cache/chromium.new"
    mv "$cache/chromium.new" "$cache/chromium"
}

done_with() {
    rm -rf "$cache/profile" "$cache/drawn.png"
    echo "$cache"
    exit
}

for program in "${CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
    if [ -n "$program" ] && found=$(command -v "$program") && works "$found"; then take "$found"; done_with; fi
done
if [ -x "$cache/chromium" ] && works "$cache/chromium"; then done_with; fi

say "downloading Playwright's Chromium"
export PLAYWRIGHT_BROWSERS_PATH="$cache/playwright"
if PYTHONPATH="$cache/packages" timeout 600 "$python" -m playwright install --only-shell chromium >>"$log" 2>&1; then
    found=$(find "$cache/playwright" -type f \( -name headless_shell -o -name chrome-headless-shell \) | head -n 1)
    if [ -n "$found" ] && works "$found"; then take "$found"; done_with; fi
fi

say "there is no Chromium, and Playwright's does not come or run: downloading Debian's with what it needs (150 MB)"
tree="$cache/debian"
status=0
libraries=$("$here/../debian/unpack.sh" "$tree" chromium-headless-shell chromium -- fonts-dejavu-core) || status=$?
[ "$status" = 0 ] || cannot "$libraries"
program="$tree/usr/lib/chromium/chromium"
if [ -x "$program-headless-shell" ]; then program="$program-headless-shell"; fi
[ -x "$program" ] || cannot "Debian's Chromium has another place than was known: look in $tree"
cat >"$cache/fonts.conf" <<END
<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>$tree/usr/share/fonts</dir><dir>/usr/share/fonts</dir><cachedir>$cache/fonts</cachedir></fontconfig>
END
cat >"$cache/debian-chromium" <<END
#!/bin/sh
export LD_LIBRARY_PATH="$libraries:$tree/usr/lib/chromium" FONTCONFIG_FILE="$cache/fonts.conf"
exec "$program" "\$@"
END
chmod +x "$cache/debian-chromium"
works "$cache/debian-chromium" || cannot "Debian's Chromium does not run here: $(tail -n 1 "$log")"
take "$cache/debian-chromium"
done_with
