#!/usr/bin/env bash
# WMT'16 English-German for this directory's recipes, from one of two sources:
#
#   ARCHIVE=wmt16_en_de.tar.gz bash recipes/wmt16_en_de/prepare.sh       the text as Google prepared it (32k codes)
#   TEXT=DIR bash recipes/wmt16_en_de/prepare.sh                         raw text: DIR/train.en[.xz|.gz], .de, valid, test
#
# The archive is that of fairseq's example scaling_nmt [ott]: tokens of Moses, dashes split; validation on newstest2013, test
# on newstest2014. With it figures are comparable with [ott]; with raw text only those of sacreBLEU.
# VOCAB_SIZE=32000 codes are learned from raw text.
# Cost: WORKERS=8 CPU cores and no GPU; for how long has not been measured.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
WORKERS=${WORKERS:-8}
if [[ -n ${ARCHIVE:-} ]]; then
    scratch=$(mktemp -d -p "${TMPDIR:-/tmp}")
    trap 'rm -rf "$scratch"' EXIT
    tar -xzf "$ARCHIVE" -C "$scratch"
    train=$(find "$scratch" -name train.tok.clean.bpe.32000.en -print -quit)
    [[ -n $train ]] || { echo "$ARCHIVE has no train.tok.clean.bpe.32000.en: it is not Google's archive" >&2 && exit 2; }
    text=$(dirname "$train") codes=()
    [[ ! -f $text/bpe.32000 ]] || codes=(--codes "$text/bpe.32000")
    python -m translation.prepare --dest "$DATA" --workers "$WORKERS" "${codes[@]}" --pieces given --moses --split-dashes \
        --train-prefix "$text/train.tok.clean.bpe.32000" --valid-prefix "$text/newstest2013.tok.bpe.32000" \
        --test-prefix "$text/newstest2014.tok.bpe.32000" --dictionary-size 32768 --held-out keep
elif [[ -n ${TEXT:-} ]]; then
    python -m translation.prepare --dest "$DATA" --workers "$WORKERS" --pieces subword-nmt --moses --split-dashes \
        --vocab-size "${VOCAB_SIZE:-32000}" --train-prefix "$TEXT/train" --valid-prefix "$TEXT/valid" --test-prefix "$TEXT/test" \
        --dictionary-size 32768 --max-length 250 --max-ratio 1.5
else
    echo "set ARCHIVE=wmt16_en_de.tar.gz, or TEXT=DIR with train, valid and test .en and .de" >&2
    exit 2
fi
