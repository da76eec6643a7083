#!/bin/bash
# Usage: build_image.sh
# Builds both images of the Dockerfile and runs them: a portal, and a node that enrols with it, read-only and without rights.
# No engine's daemon and no registry are needed: buildah and podman, on a base image made from Debian's packages.
#
# Needs root on Debian; what is missing is installed. OUTSTATION_TEST_CACHE: where the base image is kept
# (default /var/tmp/outstation-tests). KEEP=1 leaves the containers' storage for a look.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
checkout=$(cd "$here/../.." && pwd)
cache=${OUTSTATION_TEST_CACHE:-/var/tmp/outstation-tests}
base=docker.io/library/python:3.11-slim-bookworm
work=$(mktemp -d)

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }

fail() {
    echo "image-test: $*" >&2
    exit 1
}

[ "$(id -u)" -eq 0 ] || fail "building without an engine needs root: run 'sudo make image-test'."
missing=()
for tool in buildah podman runc mmdebstrap; do command -v $tool >/dev/null || missing+=($tool); done
if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    apt-get update -q -o DPkg::Lock::Timeout=300 >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}" >/dev/null
fi

# The storage flags must be the same everywhere: another driver is another, empty store.
storage=(--root "$work/storage" --runroot "$work/run" --storage-driver overlay)
buildah() { command buildah "${storage[@]}" "$@"; }
# fatal: podman asks systemd for timers to run health checks by, and complains loudly where there is none.
podman() { command podman "${storage[@]}" --log-level fatal --runtime runc --cgroup-manager cgroupfs --events-backend file "$@"; }
# --ulimit: podman's own limits are above what a root without CAP_SYS_RESOURCE may set.
limits=(--ulimit nofile=1024:4096 --ulimit nproc=4096:4096)

finish() {
    status=$?
    if [ $status -ne 0 ]; then
        for name in outstation-test-portal outstation-test-agent; do podman logs --tail 30 $name 2>&1 || true; done
    fi
    podman rm --all --force --time 0 >/dev/null 2>&1 || true
    if [ -z "${KEEP:-}" ]; then
        podman volume prune --force >/dev/null 2>&1 || true
        buildah rmi --all --force >/dev/null 2>&1 || true
        umount "$work/storage/overlay" 2>/dev/null || true
        rm -rf "$work"
    else
        echo "Kept: podman ${storage[*]}"
    fi
    exit $status
}
trap finish EXIT

# --- the base: Debian's own Python, named and laid out as the official image ----------------------------------------
archive=$cache/python-3.11-bookworm.tar
if [ ! -e "$archive" ]; then
    say "making the base image's files"
    mkdir -p "$cache"
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' | head -n 1)
    mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
        --include=python3,python3-venv,ca-certificates,passwd bookworm "${archive%.tar}.new.tar" ${mirror:+"$mirror"}
    mv "${archive%.tar}.new.tar" "$archive"
fi
container=$(buildah from scratch)
buildah add --quiet "$container" "$archive" / >/dev/null
# What this machine trusts on its way to the package index.
buildah copy --quiet "$container" /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt >/dev/null
buildah run --isolation chroot "$container" -- ln -sf python3 /usr/bin/python
buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd python3 "$container"
buildah commit --quiet --rm "$container" $base >/dev/null
say "base image $base"

# --- build -------------------------------------------------------------------------------------------------------------
pip_configuration=()
for file in /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
    [ ! -e $file ] || pip_configuration+=(--volume "$file:$file:ro")
done
for target in agent portal; do
    # The docker format, because OCI's knows no HEALTHCHECK.
    buildah bud --quiet --layers --pull=never --isolation chroot --format docker "${pip_configuration[@]}" \
        --target $target --tag outstation-$target --file "$checkout/Dockerfile" "$checkout" >/dev/null
    bytes=$(podman image inspect --format '{{.Size}}' outstation-$target)
    base_bytes=$(podman image inspect --format '{{.Size}}' $base)
    say "outstation-$target: $((bytes / 1000000)) MB, $(((bytes - base_bytes) / 1000000)) MB above its base"
done

# --- run ---------------------------------------------------------------------------------------------------------------
# As little as there is: no rights, no network of its own, nothing writable but the volume.
sealed=(--pull=never --read-only --read-only-tmpfs=false --cap-drop=all --security-opt no-new-privileges --network host --log-driver k8s-file "${limits[@]}")

[ "$(podman run --rm "${sealed[@]}" --entrypoint python outstation-agent -c 'import os; print(os.getuid())')" = 10001 ] ||
    fail "the agent's image does not run as user 10001"
podman run --rm "${sealed[@]}" outstation-agent version
podman run --rm "${sealed[@]}" --entrypoint python outstation-agent -c 'import base_service, gpiozero, lgpio, azure.iot.device'
podman run --rm "${sealed[@]}" --entrypoint uv outstation-agent --version
status=0
podman run --rm "${sealed[@]}" outstation-agent run >/dev/null 2>&1 || status=$?
[ $status -eq 26 ] || fail "an agent that is not enrolled ended with status $status, not 26"
say "an agent that is not enrolled says so"

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
podman run --detach --name outstation-test-portal "${sealed[@]}" --volume outstation-test-portal:/var/lib/outstation \
    --env PORTAL_HOST=127.0.0.1 --env PORTAL_PORT="$port" outstation-portal >/dev/null

# The log itself is followed, so that nothing waits longer than it must; grep ends with the link, the following by itself.
link=$(grep --line-buffered -m 1 -oE 'https?://[^ ]+/setup\?token=[^ ]+' \
    < <(timeout 60 podman "${storage[@]}" logs --follow outstation-test-portal 2>&1)) ||
    fail "the portal printed no set-up link in 60 s"
say "the portal is up"
command=$(python3 "$here/portal_client.py" "$link" enrol)
podman run --rm "${sealed[@]}" --volume outstation-test-agent:/var/lib/outstation outstation-agent \
    ${command#outstation } --name container-test
podman run --detach --name outstation-test-agent "${sealed[@]}" --volume outstation-test-agent:/var/lib/outstation \
    outstation-agent run --gpio simulated >/dev/null

healthy() {
    for _ in $(seq 60); do
        podman healthcheck run "$1" >/dev/null 2>&1 && return
        sleep 0.5
    done
    return 1
}
healthy outstation-test-portal || fail "the portal's container did not get healthy in 30 s"
healthy outstation-test-agent || fail "the agent's container did not get healthy in 30 s"
podman exec outstation-test-agent outstation status
say "both containers are healthy"

for name in outstation-test-agent outstation-test-portal; do
    podman stop --time 20 $name >/dev/null
    status=$(podman inspect --format '{{.State.ExitCode}}' $name)
    [ "$status" -eq 0 ] || fail "$name ended with status $status on SIGTERM"
done
say "both ended by themselves on SIGTERM; all is well"
