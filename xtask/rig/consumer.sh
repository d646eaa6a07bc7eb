#!/bin/bash
# Usage: rig-consumer DIRECTORY. Runs only on a mounted volume, holds a file and its working directory there, and needs
# two seconds to stop.
set -euo pipefail

mountpoint --quiet "$1"
cd "$1"
exec 9>>held
trap 'echo "consumer: stopping"; sleep 2; echo last >&9; echo "consumer: stopped"; exit 0' TERM
echo "consumer: running"
while :; do
    echo tick >&9
    sleep 1 &
    wait $! || true
done
