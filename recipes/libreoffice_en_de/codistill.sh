#!/usr/bin/env bash
# Two codistilled models by checkpoints, with constant regularisation and with regularisation that goes away.
#
#   bash recipes/libreoffice_en_de/prepare.sh && bash recipes/libreoffice_en_de/codistill.sh
#
# Cost: 2 CPU cores for 3 to 4 minutes each, with translating the test split (by the CPU time of pilots).
# Should show: about the validation NLL of all_reduce once regularisation is lowered [paper, WMT'16, without figures].
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
codistill codistilled
codistill codistilled_lowered "${LOWERED[@]}"
