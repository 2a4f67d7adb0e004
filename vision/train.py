"""Train picture classifiers.

``torchrun --standalone --nproc-per-node 2 -m vision.train --dataset cifar10 --codistill-models 2 ...``
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from codistill_ext.job.failures import command, mistakes
from vision.device import stop_process_group
from vision.options import build_parser, parse_options
from vision.run import prepare


@command("vision.train")
def main(argv: Sequence[str] | None = None) -> None:
    options = parse_options(build_parser(), argv)
    with mistakes():  # a later ValueError is ours, and shows where it comes from
        run = prepare(options)
    status = run()
    # Not after an error: NCCL would wait here for ranks that wait for this one, before anybody sees the message.
    stop_process_group()
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
