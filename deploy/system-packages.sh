#!/bin/sh
# Installs the system packages that the tests need (Chromium, for the pages and for playing clips), where it can:
# as root on a Debian or Ubuntu machine. Elsewhere it says what to install and goes on; the tests that need it say so too.
set -eu
command -v chromium >/dev/null 2>&1 && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "Chromium is missing: install it (Debian: apt-get install chromium) to run the browser tests" >&2
    exit 0
fi
echo "installing chromium (once)"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >/dev/null && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null 2>&1 ||
    echo "could not install Chromium: the browser tests will fail until 'apt-get install chromium' works" >&2
