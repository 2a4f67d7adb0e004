#!/usr/bin/env bash
# Control: the same two models with the same work, without the term: each is one model alone, for as long.
#
#   bash recipes/libreoffice_en_de/prepare.sh && bash recipes/libreoffice_en_de/alone.sh
#
# Cost: 2 CPU cores for 3 to 4 minutes each (by the CPU time of pilots). The paper does not have it.
# Should show: unknown; what codistilled models have more than these is what they learned from each other.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
codistill alone --codistill-alpha 0
codistill alone_lowered "${LOWERED[@]}" --codistill-alpha 0
