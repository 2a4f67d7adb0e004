"""The data of the fairseq tests."""

from tests.fairseq_plugin.conftest import data_bin

__all__ = ["data_bin"]
