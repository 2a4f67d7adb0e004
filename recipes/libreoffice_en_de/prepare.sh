#!/usr/bin/env bash
# The data of this directory's recipes: the corpus that is shipped here, pairs of up to 12 words, 2000 joint pieces.
#
#   bash recipes/libreoffice_en_de/prepare.sh
#
# 24,528 pairs to train, 1061 to validate, 941 to test; and 1/2, 1/4 and 1/8 of the training pairs with the same pieces.
# Cost: half a minute of one core.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
python -m translation.prepare --dest "$ALL_DATA/1" --vocab-size 2000 --max-words 12
for part in 1/2 1/4 1/8; do
    dest=$ALL_DATA/${part/\//of}
    python -m translation.prepare --dest "$dest" --pieces-of "$ALL_DATA/1" --train-part $part --max-words 12
done
