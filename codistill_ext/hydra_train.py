"""(fairseq) ``torchrun ... -m codistill_ext.hydra_train``: fairseq-hydra-train with the plug-in imported in time.

fairseq-hydra-train imports ``common.user_dir`` after it has joined the process group, too late to
help it do so. Its options and configuration files are used as they are.
"""

from fairseq_cli.hydra_train import cli_main

from codistill_ext.tasks import codistill_translation  # noqa: F401  registers and installs the plug-in

if __name__ == "__main__":
    cli_main()
