#!/bin/bash
# Usage: nspawn.sh
# Boots a throw-away Debian with systemd as PID 1, in which systemd/install made a portal and a node of this checkout.
# Prints "booting" when all is installed; SIGTERM powers the machine off; nothing of it stays but the cached base system.
#
# Needs root, mmdebstrap and systemd-nspawn. While installing it uses the network of the host; booted it has none but loopback.
# OUTSTATION_TEST_CACHE: where the base system is kept (default /var/tmp/outstation-tests).
set -euo pipefail
checkout=$(cd "$(dirname "$0")/../.." && pwd)
cache=${OUTSTATION_TEST_CACHE:-/var/tmp/outstation-tests}
base=$cache/bookworm-systemd

make_base() {
    # The mirror that apt uses here, with the authority that this machine trusts on the way to it.
    local mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' | head -n 1)
    mkdir -p "$cache"
    rm -rf "$base.new"
    mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
        --include=systemd,systemd-sysv,dbus,udev,python3,python3-venv,ca-certificates \
        bookworm "$base.new" ${mirror:+"$mirror"}
    mv -T "$base.new" "$base"
}

# Runs in a mount namespace of its own: whatever it mounts is gone when it ends.
boot() {
    # systemd-nspawn refuses to work on /run/systemd/nspawn where PID 1 is not systemd.
    mkdir -p /run/systemd/nspawn
    mount -t tmpfs tmpfs /run/systemd/nspawn
    layers=$(mktemp -d)
    mount -t tmpfs tmpfs "$layers"
    mkdir "$layers"/{upper,work,machine}
    mount -t overlay -o "lowerdir=$base,upperdir=$layers/upper,workdir=$layers/work" overlay "$layers/machine"
    root=$layers/machine

    # The files git knows, as they are now: what `git clone` would bring.
    mkdir "$root/root/outstation"
    git -C "$checkout" ls-files -z --cached --others --exclude-standard | tar -C "$checkout" --null -T - --ignore-failed-read -c |
        tar -C "$root/root/outstation" -x
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    for role in portal agent; do
        chroot "$root" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \
            SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
            /root/outstation/systemd/install $role
    done
    umount -R "$root/proc" "$root/dev"
    echo booting
    # systemd-nspawn powers the machine off on SIGTERM.
    exec systemd-nspawn --quiet --directory="$root" --register=no --keep-unit --private-network --console=read-only --boot \
        systemd.show_status=0 </dev/null
}

if [ "${1:-}" = boot ]; then
    boot
fi
[ -d "$base" ] || make_base
exec unshare --mount --propagation private "$0" boot
