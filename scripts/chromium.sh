#!/bin/sh
# Make sure Chromium is installed for the browser tests; install Debian's package if it is missing.
set -eu
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
if command -v apt-get >/dev/null 2>&1; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends chromium && exit 0
fi
echo "The browser tests need Chromium. Install it, or set CHROMIUM to its path." >&2
exit 1
