#!/bin/sh
# Debian's SLURM, if it is not here and may be installed. Without it the tests say so, and skip.
set -eu
if command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    exit 0
fi
echo "installing slurm-wlm and munge ..."
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } \
    </dev/null >/dev/null; then
    echo "slurm-wlm and munge could not be installed" >&2
fi
