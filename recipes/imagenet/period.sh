#!/usr/bin/env bash
# Item 7: checkpoints exchanged half, twice and four times as often do as well as every 2500 updates.
#
# Cost: 3 times 16 V100 for 3.3 hours (as out_of_box.sh).
# Should show: nearly the same accuracy at 0.5, 1 (adjusted.sh), 2 and 4 times the frequency [paper: 5000 to 625 updates].
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for frequency in 0.5 2 4; do
    codistill period_x$frequency "${ADJUSTED[@]}" --codistill-period "$(awk "BEGIN { printf \"%d\", $PERIOD / $frequency }")"
done
