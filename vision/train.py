"""Train picture classifiers.

``torchrun --standalone --nproc-per-node 2 -m vision.train --dataset cifar10 --codistill-models 2 ...``
"""

from __future__ import annotations

from collections.abc import Sequence

from vision.device import stop_process_group
from vision.options import build_parser, parse_options
from vision.run import prepare


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    options = parse_options(parser, argv)
    try:
        run = prepare(options)
    except ValueError as error:  # a user's mistake; later ones are ours and show where they come from
        parser.error(str(error))
    run()
    # Not after an error: NCCL would wait here for ranks that wait for this one, before anybody sees the message.
    stop_process_group()


if __name__ == "__main__":
    main()
