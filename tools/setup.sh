#!/usr/bin/env bash
# Make this clone ready to run and test; doing it again costs a moment and changes nothing.
#   1. programs the machine must have: installed with apt when we are root on Debian, none of them brings a service
#   2. programs only tests, demo and bench use, some of which would start services: downloaded and unpacked into
#      .cache/parts, never installed
#   3. the virtual environment .venv, from constraints.txt with hashes
# Usage: tools/setup.sh       PYTHON=python3.12 tools/setup.sh chooses another interpreter
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

installed=(runc conmon crun gcc libc6-dev python3-venv ca-certificates)
parts=(
    docker-registry docker.io containerd  # a registry, the CLI, and the peer of the bench
    skopeo libgpgme11 libassuan0          # a second opinion on what we push
    nats-server                           # takes events in
    podman libsubid4                      # an engine that uses plugins, as dockerd does
    systemd libsystemd-shared             # to check and to boot our unit
    # what these need and a bare Debian lacks
    libdevmapper1.02.1 libcryptsetup12 libargon2-1 libjson-c5 libfdisk1 libkmod2 libip4tc2 libapparmor1
)

say() { printf 'setup: %s\n' "$*"; }

is_debian() {
    grep -qsE '^ID(_LIKE)?=.*debian' /etc/os-release && command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null
}

# With old package lists a download fails; then fetch the lists and try once more.
apt_retry() {
    "$@" && return
    [ "$(id -u)" = 0 ] || return 1
    say "fetching package lists"
    apt-get update -qq
    "$@"
}

# Name each thing the machine lacks, one a line.
missing() {
    local program
    for program in runc conmon gcc; do
        command -v "$program" >/dev/null || echo "the program $program"
    done
    ! command -v gcc >/dev/null || [ -e "$(gcc -print-file-name=libc.a)" ] || echo "the static C library (libc6-dev)"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || echo "Python 3.11 or newer as $python"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "Python's venv and ensurepip (python3-venv)"
    [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] || echo "ca-certificates"
}

install_programs() {
    local lacks
    lacks=$(missing)
    [ -n "$lacks" ] || return 0
    if is_debian && [ "$(id -u)" = 0 ]; then
        say "installing ${installed[*]}"
        DEBIAN_FRONTEND=noninteractive apt_retry \
            apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "${installed[@]}" >/dev/null
        lacks=$(missing)
        [ -n "$lacks" ] || return 0
    fi
    {
        say "this machine lacks:"
        printf '%s\n' "$lacks" | sed 's/^/  - /'
        if is_debian; then
            say "as root: apt-get install --no-install-recommends ${installed[*]}"
        else
            say "install them with your system's packages (Debian calls them: ${installed[*]}), then try again"
        fi
    } >&2
    return 1
}

unpack_parts() {
    local wanted="${parts[*]}" new program lacks=()
    [ "$(cat .cache/parts/.packages 2>/dev/null)" != "$wanted" ] || return 0
    if ! is_debian; then
        for program in docker docker-registry; do
            command -v "$program" >/dev/null || lacks+=("$program")
        done
        [ ${#lacks[@]} -gt 0 ] || return 0
        say "no Debian, so nothing to unpack from; put these programs on PATH: ${lacks[*]}" >&2
        return 1
    fi
    rm -rf .cache/parts.?????? # of a run that was killed
    say "downloading and unpacking (not installing) $wanted"
    new=$(mktemp -d .cache/parts.XXXXXX)
    # shellcheck disable=SC2064  # the name is wanted as it is now
    trap "rm -rf '$PWD/$new'" EXIT
    chmod 755 "$new"
    mkdir -p "$new"/{debs,usr/{bin,sbin,lib,lib64}}
    for link in bin sbin lib lib64; do ln -s "usr/$link" "$new/$link"; done # Debian's own layout since 12
    (cd "$new/debs" && apt_retry apt-get download -qq -o APT::Sandbox::User=root "${parts[@]}")
    for deb in "$new"/debs/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$new" --no-same-owner --keep-directory-symlink --exclude=./usr/share/doc \
            --exclude=./usr/share/man
    done
    rm -rf "$new/debs"
    printf '%s' "$wanted" >"$new/.packages"
    rm -rf .cache/parts
    mv "$new" .cache/parts
    trap - EXIT
}

make_venv() {
    local wanted
    wanted=$(cat constraints.txt pyproject.toml <("$python" -VV) | sha256sum)
    [ "$(cat .venv/.made-from 2>/dev/null)" != "$wanted" ] || return 0
    say "making .venv with $("$python" -V)"
    .venv/bin/python -m pip --version >/dev/null 2>&1 || rm -rf .venv
    [ -d .venv ] || "$python" -m venv .venv
    local pip=(.venv/bin/python -m pip --disable-pip-version-check install -qq --no-build-isolation --use-pep517)
    # First what builds: one dependency (forbiddenfruit) comes as source only, and its build must be pinned as well.
    "${pip[@]}" --require-hashes -r <(sed -n '/^setuptools==/,/[^\\]$/p' constraints.txt)
    "${pip[@]}" --require-hashes -r constraints.txt
    "${pip[@]}" --no-index --no-deps -e .
    printf '%s' "$wanted" >.venv/.made-from
}

mkdir -p .cache
exec 9>.cache/setup.lock
flock 9
install_programs
unpack_parts
make_venv
say "ready"
