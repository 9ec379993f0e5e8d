#!/bin/sh
# Build the sample plugin as a folder for `docker plugin create NAME DIR`.   Usage: build.sh DIR VERSION
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$1 version=$2
mkdir -p "$dir/rootfs/data" "$dir/rootfs/seed" "$dir/rootfs/run/docker/plugins"
"${CC:-gcc}" -std=c11 -O2 -Wall -Wextra -static -s -o "$dir/rootfs/sample-volume-plugin" "$here/plugin.c"
sed "s/@VERSION@/$version/" "$here/config.json" >"$dir/config.json"
