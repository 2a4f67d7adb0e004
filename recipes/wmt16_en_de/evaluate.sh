#!/usr/bin/env bash
# A run's scores on newstest2014: mean of the last 10 epochs, beam 4, length penalty 0.6 [ott].
#
#   bash recipes/wmt16_en_de/evaluate.sh runs/wmt16_en_de/codistilled-s1 [options of translation.evaluate]
#   REFERENCE=newstest2014.de bash recipes/wmt16_en_de/evaluate.sh RUN             without sacrebleu's own files
#
# Cost: one GPU for minutes: 3003 sentences, three times (each model, and the ensemble); not measured. Needs wmt14/full where sacrebleu looks for it, since the archive's
# own text is in tokens: `sacrebleu -t wmt14/full -l en-de --echo src` fetches it.
# Should reach: 28.6 in the first column, 29.29 in the last, for all_reduce [ott].
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
on=(--test-set wmt14/full)
[[ -z ${REFERENCE:-} ]] || on=(--reference "$REFERENCE")
exec python -m translation.evaluate "${1:?evaluate.sh RUN}" --last 10 --data "$DATA" "${on[@]}" $PRECISION "${@:2}"
