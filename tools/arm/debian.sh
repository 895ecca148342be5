# Debian's packages for scripts that unpack them: apt resolves and downloads with a state of its own, so that nothing is installed,
# nobody need be root, and the machine may be another release. To be sourced, with `set -euo pipefail` and these set before:
#
#   name     who speaks, for messages
#   release  Debian's release
#   work     a folder; what was downloaded stays there until the script removes it, and is not downloaded again after an interruption
#
# and, where the packages are those of another machine, `machine` (amd64 otherwise), `architectures` as apt lists them (that and arm64), and
# `components` (main).
#
# A function that cannot do its work prints why on standard output, and ends the script with 3.
# shellcheck shell=bash disable=SC2016,SC2154 # what apt expands is in single quotes

say() { echo "$name: $*" >&2; }
cannot() { echo "$*"; exit 3; }

# Whether this machine has what unpacking takes.
debian_possible() {
    [ "$(uname -sm)" = "Linux x86_64" ] || cannot "it needs x86-64 Linux, and this is $(uname -sm)"
    local program
    for program in apt-get apt-config dpkg-deb tar flock "${PYTHON:-python3}"; do
        command -v "$program" >/dev/null || cannot "there is no $program: it needs Debian or something near it"
    done
}

# FOLDER: waits for whoever else prepares something in it. A lock goes with the script.
debian_lock() {
    mkdir -p "$1"
    exec 9>"$1/lock"
    flock --nonblock 9 || { say "waiting for another run that prepares it"; flock 9; }
}

# FOLDER MB: whether there is room.
debian_room() {
    local free_mb
    free_mb=$(df -Pm "$1" | awk 'NR == 2 { print $4 }')
    [ "$free_mb" -ge "$2" ] || cannot "$1 has $free_mb MB free, and it needs $2"
}

# TREE MB: `finish` where the tree is whole, before or after whoever else prepares it; else there is room for it, and nobody else does.
debian_begin() {
    if [ -d "$1" ]; then finish; fi
    debian_possible
    debian_lock "$(dirname "$1")"
    if [ -d "$1" ]; then finish; fi
    debian_room "$(dirname "$1")" "$2"
}

# SUITE..: reads the lists of these, the first one before the others; apt takes nothing of another. Standard input is dpkg's list of
# what counts as installed, for amd64 as the machine and arm64 beside it.
debian_lists() {
    log="$work/log"
    mkdir -p "$work"/{state,lists,archives/partial}
    chmod 700 "$work" # a proxy of apt may have a password
    cat >"$work/status"

    # Which archive, from the machine's own configuration; Debian's key decides whether it is one.
    local codename keyring=/usr/share/keyrings/debian-archive-keyring.gpg archive archives option found=
    # shellcheck disable=SC1091
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    mapfile -t archives < <(
        apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' |
            awk -v own="$codename" '$3 == "main" && ($2 == own || $2 ~ /^(bookworm|trixie|forky|oldstable|stable|testing|unstable|sid)$/) { print $1 }' |
            sort -u
    )
    [ ${#archives[@]} -gt 0 ] || cannot "apt has no package archive of Debian configured"

    # The machine's proxies and limits, but neither its sources nor its hooks.
    apt-config dump | grep '^Acquire::' | grep -v '^Acquire::IndexTargets' >"$work/apt.conf" || true
    cat >>"$work/apt.conf" <<END
Acquire::Retries "3";
APT::Architecture "${machine:-amd64}";
APT::Architectures { ${architectures:-"amd64"; "arm64";} };
APT::Default-Release "$1";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Dir::Cache "$work";
Dir::Cache::archives "archives";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "$work/state";
Dir::State::lists "$work/lists";
Dir::State::status "$work/status";
END
    : >"$log"
    for archive in "${archives[@]}"; do
        option=
        if [ -e "$keyring" ]; then option="[signed-by=$keyring] "; fi
        printf "deb $option$archive %s ${components:-main}\n" "$@" >"$work/sources.list"
        say "reading the lists of Debian $release from $archive"
        if apt -o APT::Update::Error-Mode=any update; then found=1; break; fi
    done
    [ "$found" ] || cannot "no archive that apt knows gave Debian $release: $(why)"
    # Whatever an interrupted run brought and has a newer version since must not be unpacked beside it.
    apt autoclean
}
apt() { APT_CONFIG="$work/apt.conf" apt-get -y -qq "$@" >>"$log" 2>&1; }
why() { grep '^[EW]:' "$log" | head -n 1 || tail -n 1 "$log"; }

# PACKAGE..: with all that they depend on, into $work/archives.
debian_fetch() { apt install --download-only "$@" || cannot "the packages cannot be downloaded: $(why)"; }
# PACKAGE..: they alone.
debian_fetch_alone() {
    (cd "$work/archives" && apt download "$@") || cannot "the packages cannot be downloaded: $(why)"
}

# PACKAGE-FILE TREE ARGUMENTS-OF-TAR..: unpacks one.
debian_unpack() {
    local package=$1 tree=$2
    shift 2
    dpkg-deb --fsys-tarfile "$package" | tar -x --no-same-owner -C "$tree" "$@"
}

# TREE NAME ARGUMENTS-IN-SHELL: a dynamic program of a tree runs through the loader that came with it. `$usr` is the tree's.
debian_wrap() {
    mv "$1/usr/bin/$2" "$1/usr/bin/$2.elf"
    cat >"$1/usr/bin/$2" <<END
#!/bin/sh
usr=\${0%/*}/..
exec "\$usr/lib64/ld-linux-x86-64.so.2" --library-path "\$usr/lib/x86_64-linux-gnu" "\$usr/bin/$2.elf" $3
END
    chmod +x "$1/usr/bin/$2"
}
