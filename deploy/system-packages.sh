#!/bin/sh
# Installs the system packages that the tests need (Chromium, for the pages and for playing clips; Prometheus, for the
# dashboard of numbers; systemd, to check its units; ip, to cut nodes off), where it can: as root on a Debian or Ubuntu
# machine. Elsewhere it says what to install and goes on; the tests that need it say so too.
set -eu
missing=""
command -v chromium >/dev/null 2>&1 || missing="chromium fonts-dejavu-core"
command -v prometheus >/dev/null 2>&1 || missing="$missing prometheus"
command -v systemd-analyze >/dev/null 2>&1 || missing="$missing systemd"
command -v ip >/dev/null 2>&1 || missing="$missing iproute2"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "to run all tests, install: $missing (Debian: apt-get install)" >&2
    exit 0
fi
echo "installing $missing (once)"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
apt-get update -qq >/dev/null && apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
    echo "could not install $missing: the tests that need them will fail until 'apt-get install' works" >&2
