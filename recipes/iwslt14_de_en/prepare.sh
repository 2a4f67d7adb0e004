#!/usr/bin/env bash
# IWSLT'14 German-English for this directory's recipes, much as fairseq's example prepares it.
#
#   ARCHIVE=de-en.tgz bash recipes/iwslt14_de_en/prepare.sh              the archive of the 2014 evaluation campaign
#
# Tokens of Moses in lower case, 1 to 175 of them, ratio up to 1.5, VOCAB_SIZE=10000 joint codes; validation on every 23rd pair;
# test on dev2010, dev2012 and tst2010 to tst2012. Two things differ: sacremoses cuts tokens, not always as Moses does, and both
# languages share a dictionary. The paper has 153K/7K/7K pairs and does not say how they were chosen; how many this gives has
# not been counted by us, so its validation NLL need not be of the same sentences.
# Cost: WORKERS=8 CPU cores and no GPU; a few minutes (computed from libreoffice_en_de's speed, not measured).
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
: "${ARCHIVE:?set ARCHIVE=de-en.tgz}"
scratch=$(mktemp -d -p "${TMPDIR:-/tmp}")
trap 'rm -rf "$scratch"' EXIT
python -m translation.iwslt "$ARCHIVE" --dest "$scratch/text" --source-lang de --target-lang en
python -m translation.prepare --dest "$DATA" --workers "${WORKERS:-8}" --source-lang de --target-lang en \
    --pieces subword-nmt --moses --lowercase --vocab-size "${VOCAB_SIZE:-10000}" --train-prefix "$scratch/text/train" \
    --test-prefix "$scratch/text/test" --valid-every 23 --max-length 175 --max-ratio 1.5 --held-out keep
