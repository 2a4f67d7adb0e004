#!/usr/bin/env bash
# Translate and score runs of this directory again, or compare two of them by paired bootstrap:
#
#   bash recipes/libreoffice_en_de/evaluate.sh runs/libreoffice_en_de/codistilled-s1 [options of translation.evaluate]
#   RUNS=runs/libreoffice_en_de
#   bash recipes/libreoffice_en_de/evaluate.sh $RUNS/codistilled-s1 --against $RUNS/all_reduce-s1
#
# Cost: one CPU core for half a minute.
# Should reach: no figure is known for this corpus; what runs reached here: results/libreoffice_en_de.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
exec python -m translation.evaluate "${1:?evaluate.sh RUN}" --last 3 --cpu "${@:2}"
