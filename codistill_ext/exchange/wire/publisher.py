"""Publishing a model in a shared directory while training goes on."""

import concurrent.futures
import logging
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from torch import nn

from codistill_ext.exchange.wire.background import BackgroundWorker
from codistill_ext.exchange.wire.counter import TrafficCounter
from codistill_ext.exchange.wire.description import ModelDescription
from codistill_ext.exchange.wire.shared_directory import OwnDirectory
from codistill_ext.exchange.wire.weights import WeightPacker

logger = logging.getLogger(__name__)


class Publisher:
    """Writes snapshots in a thread; what fails or hangs is a warning and nothing to wait for.

    Args:
        who: this job's name in messages.
    """

    def __init__(
        self, path: Path, packer: WeightPacker, description: ModelDescription, *, who: str, traffic: TrafficCounter
    ) -> None:
        self.worker = BackgroundWorker("codistill-publish")
        self.directory = OwnDirectory(path, who=who, begins=self.worker.begins)
        self._packer = packer
        self._description = description
        self._who = who
        self._traffic = traffic
        self._last: Future[None] | None = None

    def publish(self, module: nn.Module, update: int) -> None:
        """Begin to write the weights of now, unless the last ones are still being written."""
        if self._last is not None and not self._last.done():  # their copy in memory is enough
            hangs = self.worker.hangs_in() or "the last weights are still on their way"
            logger.warning("%s publishes nothing at update %d: %s", self._who, update, hangs)
            return
        self._last = self.worker.submit(self._publication(module, update, finished=False))

    def finish(self, module: nn.Module, update: int) -> None:
        """Write the final weights, behind what is being written; they say that no more will come."""
        self._last = self.worker.submit(self._publication(module, update, finished=True))

    def settle(self, patience_s: float) -> None:
        """Wait for what is being written, unless that has taken as long already."""
        if self._last is not None and self.worker.hangs_in(patience_s) is None:
            concurrent.futures.wait([self._last], timeout=patience_s)

    def _publication(self, module: nn.Module, update: int, *, finished: bool) -> Callable[[], None]:
        """For the thread: to publish a snapshot of now."""
        row = self._packer.pack(module).to("cpu", copy=True)

        def publish() -> None:
            try:
                views = self._packer.views(row)
                size = self.directory.publish(views, self._description, update=update, finished=finished)
            except OSError as error:
                then = "its peers will not know that it has finished" if finished else "it tries again with the next"
                logger.warning(
                    "%s could not publish its weights of update %d in %s (%s): %s",
                    *(self._who, update, self.directory.path, error, then),
                )
            else:
                self._traffic.sent["weights"] += size

        return publish
