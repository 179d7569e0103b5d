#!/bin/sh
# fetch_icons.sh DIR: the icon sets that scripts/draw_faces.py draws, from the npm registry, unpacked into DIR/<set>.
set -eu
mkdir -p "$1"
cd "$1"
for set in noto noto-v1 twemoji fluent-emoji fluent-emoji-flat openmoji emojione emojione-v1 fxemoji; do
    [ -f "$set/icons.json" ] && continue
    archive=$(npm pack --silent "@iconify-json/$set")
    mkdir -p "$set"
    tar xzf "$archive" -C "$set" --strip-components=1
    rm "$archive"
done
