#!/usr/bin/env bash
# Train, and then evaluate what was trained: evaluated.sh RUN OPTIONS_OF_TRANSLATION_EVALUATE... -- COMMAND...
set -euo pipefail
run=$1 options=()
shift
while [[ $1 != -- ]]; do
    options+=("$1")
    shift
done
"${@:2}"
exec python -m translation.evaluate "$run" "${options[@]}"
