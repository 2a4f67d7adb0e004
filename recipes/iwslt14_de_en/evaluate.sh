#!/usr/bin/env bash
# A run's scores on the test sentences, in lower case as the data are: mean of 10 epochs, beam 4, length penalty 0.6.
#
#   bash recipes/iwslt14_de_en/evaluate.sh runs/iwslt14_de_en/codistilled-s1 [options of translation.evaluate]
#
# Cost: one GPU for minutes: 7K sentences, three times (each model, and the ensemble); not measured.
# Should reach: unknown; the paper has the validation NLL alone.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
exec python -m translation.evaluate "${1:?evaluate.sh RUN}" --last 10 --data "$DATA" $PRECISION "${@:2}"
