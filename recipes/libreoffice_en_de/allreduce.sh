#!/usr/bin/env bash
# The yardstick: plain data parallelism on two workers, with constant regularisation and with one that goes away.
#
#   bash recipes/libreoffice_en_de/prepare.sh && bash recipes/libreoffice_en_de/allreduce.sh
#
# Cost: 2 CPU cores for 3 to 4 minutes each, with translating the test split (by the CPU time of pilots).
# Should reach: no figure is known for this corpus; what it reached here: results/libreoffice_en_de.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
all_reduce all_reduce
all_reduce all_reduce_lowered "${LOWERED[@]}"
