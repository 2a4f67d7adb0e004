#!/usr/bin/env bash
# Ours: label smoothing or dropout alone is lowered, with all_reduce, codistilled, and without the term.
#
#   bash recipes/libreoffice_en_de/prepare.sh && bash recipes/libreoffice_en_de/regularisation.sh
#
# Cost: 2 CPU cores for 3 to 4 minutes each (by the CPU time of pilots).
# Should show: which of them the codistillation term replaces; the paper does not say what it lowered.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for method in all_reduce codistill; do
    name=${method/codistill/codistilled}
    $method "${name}_less_smoothing" "${LESS_SMOOTHING[@]}"
    $method "${name}_less_dropout" "${LESS_DROPOUT[@]}"
done
codistill alone_less_smoothing "${LESS_SMOOTHING[@]}" --codistill-alpha 0
codistill alone_less_dropout "${LESS_DROPOUT[@]}" --codistill-alpha 0
