"""The thread of an exchange: which GPU it works on, and what it says of a step that hangs."""

import threading
from unittest import mock

import pytest
import torch

from codistill_ext.exchange.wire.background import BackgroundWorker
from codistill_ext.exchange.wire.channel import Channel


def test_the_thread_works_on_the_gpu_that_is_current_where_it_is_made() -> None:
    """A new thread would have GPU 0. There is none here: what is asked of torch is looked at."""
    chosen: list[tuple[int, str]] = []
    with (
        mock.patch.object(torch.cuda, "is_initialized", return_value=True),
        mock.patch.object(torch.cuda, "current_device", return_value=3),
        mock.patch.object(torch.cuda, "set_device", lambda gpu: chosen.append((gpu, threading.current_thread().name))),
    ):
        worker = BackgroundWorker("codistill-test")
        assert worker.submit(lambda: list(chosen)).result(timeout=60) == [(3, "codistill-test")]
        assert worker.close(timeout_s=60)


def test_without_gpus_none_is_asked_for() -> None:
    with mock.patch.object(torch.cuda, "set_device", side_effect=AssertionError):
        worker = BackgroundWorker("codistill-test")
        assert worker.submit(lambda: 5).result(timeout=60) == 5
        assert worker.close(timeout_s=60)


def test_a_rank_that_is_out_of_memory_does_not_blame_a_peer() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="own"):
        with Channel._names_losses(mock.Mock(), "weights"):
            raise torch.OutOfMemoryError("own")
