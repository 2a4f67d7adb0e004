#!/usr/bin/env bash
# Checkpoints exchanged four times as often and four times as seldom as in codistill.sh.
#
#   bash recipes/libreoffice_en_de/prepare.sh && bash recipes/libreoffice_en_de/period.sh
#
# Cost: 2 CPU cores for 3 to 4 minutes each (by the CPU time of pilots).
# Should show: nearly the same, as the paper found for ImageNet between 625 and 5000 updates of 225,000.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for period in $((PERIOD / 4)) $((PERIOD * 4)); do
    EXCHANGE=(--codistill-exchange checkpoints --codistill-period $period)
    codistill period_$period
    codistill period_${period}_lowered "${LOWERED[@]}"
done
