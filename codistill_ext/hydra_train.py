"""(fairseq) ``torchrun ... -m codistill_ext.hydra_train``: fairseq-hydra-train with the plug-in imported in time.

fairseq-hydra-train imports ``common.user_dir`` after it has joined the process group, too late to
help it do so. Its options and configuration files are used as they are.
"""

import functools
import os

from fairseq_cli.hydra_train import cli_main
from hydra._internal.utils import get_args_parser
from hydra.errors import CompactHydraException

from codistill_ext.errors import Mistake
from codistill_ext.job.failures import command, refuse
from codistill_ext.tasks import codistill_translation  # noqa: F401  registers and installs the plug-in


@command("codistill_ext.hydra_train")
def main() -> None:
    parser = get_args_parser()
    parser.error = functools.partial(refuse, parser)
    parser.parse_args()  # before hydra and fairseq do, each with its usage
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # hydra hands its errors on, and does not end the process
    try:
        cli_main()
    except CompactHydraException as error:
        raise Mistake(f"{error} {error.__cause__ or ''}") from error


if __name__ == "__main__":
    main()
