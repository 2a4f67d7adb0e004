#!/usr/bin/env bash
# 1/2, 1/4 and 1/8 of the training pairs and as many updates: where a Transformer overfits.
#
#   bash recipes/libreoffice_en_de/prepare.sh && bash recipes/libreoffice_en_de/less_data.sh
#
# Cost: 2 CPU cores for 3 to 4 minutes each (by the CPU time of pilots).
# Should show: better validation NLL than all_reduce; on IWSLT'14 the paper has 2.31 against 2.37.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for part in 2 4 8; do
    DATA=$ALL_DATA/1of$part
    all_reduce part_${part}_all_reduce
    all_reduce part_${part}_all_reduce_lowered "${LOWERED[@]}"
    codistill part_${part}_codistilled
    codistill part_${part}_codistilled_lowered "${LOWERED[@]}"
    codistill part_${part}_alone --codistill-alpha 0
    codistill part_${part}_alone_lowered "${LOWERED[@]}" --codistill-alpha 0
done
