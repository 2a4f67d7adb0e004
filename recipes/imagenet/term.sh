#!/usr/bin/env bash
# Item 2's open questions: weight, divergence and temperature of the term. The paper does not say which it has.
#
# Cost: 9 times 16 V100 for 3.3 hours (as out_of_box.sh). Should reach: unknown.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for alpha in 0.3 3; do
    codistill alpha_${alpha} "${ADJUSTED[@]}" --codistill-alpha $alpha
    codistill alpha_${alpha}_out_of_box "${OUT_OF_BOX[@]}" --codistill-alpha $alpha
done
codistill alpha_from_40 "${ADJUSTED[@]}" --codistill-alpha 0,1@40% # a burn-in as of "Online-Codistillation Meets LARS"
codistill divergence_student_teacher "${ADJUSTED[@]}" --codistill-divergence kl_student_teacher
codistill divergence_mse "${ADJUSTED[@]}" --codistill-divergence mse
codistill temperature_2 "${ADJUSTED[@]}" --codistill-temperature 2
codistill temperature_4 "${ADJUSTED[@]}" --codistill-temperature 4
