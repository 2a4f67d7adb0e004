"""Publishing a model in a shared directory while training goes on."""

import concurrent.futures
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

from torch import Tensor, nn

from codistill_ext.exchange.wire.background import BackgroundWorker
from codistill_ext.exchange.wire.counter import TrafficCounter
from codistill_ext.exchange.wire.description import ModelDescription
from codistill_ext.exchange.wire.shared_directory import OwnDirectory
from codistill_ext.exchange.wire.weights import WeightPacker
from codistill_ext.groups import ModelGroups

logger = logging.getLogger(__name__)


class Publisher:
    """Writes snapshots in a thread; what fails or hangs is a warning and nothing to wait for.

    Args:
        groups: of this job; its first rank writes, the others lend it what they have of sharded parameters.
    """

    def __init__(
        self,
        path: Path,
        packer: WeightPacker,
        description: ModelDescription,
        *,
        groups: ModelGroups,
        traffic: TrafficCounter,
    ) -> None:
        self.worker = BackgroundWorker("codistill-publish")
        self.directory = OwnDirectory(path, who=groups.name, begins=self.worker.begins)
        self._packer = packer
        self._description = description
        self._who, self._writes = groups.name, groups.is_lead
        self._traffic = traffic
        self._last: Future[None] | None = None

    def publish(self, module: nn.Module, update: int) -> None:
        """Begin to write the weights of now, unless the last ones are still being written.

        Every rank of the job must call it.
        """
        is_free = self._last is None or self._last.done()  # else their copy in memory is enough
        tensors = self._packer.snapshot(module, keep=self._writes and is_free)
        if not is_free:
            hangs = self.worker.hangs_in() or "the last weights are still on their way"
            logger.warning("%s publishes nothing at update %d: %s", self._who, update, hangs)
        elif self._writes:
            self._last = self.worker.submit(self._publication(tensors, update, finished=False))

    def finish(self, module: nn.Module, update: int) -> None:
        """Write the final weights, behind what is being written; they say that no more will come.

        Every rank of the job must call it.
        """
        tensors = self._packer.snapshot(module, keep=self._writes)
        if self._writes:
            self._last = self.worker.submit(self._publication(tensors, update, finished=True))

    def settle(self, patience_s: float) -> None:
        """Wait for what is being written, unless that has taken as long already."""
        if self._last is not None and self.worker.hangs_in(patience_s) is None:
            concurrent.futures.wait([self._last], timeout=patience_s)

    def _publication(self, tensors: Mapping[str, Tensor], update: int, *, finished: bool) -> Callable[[], None]:
        """For the thread."""

        def publish() -> None:
            try:
                size = self.directory.publish(tensors, self._description, update=update, finished=finished)
            except OSError as error:
                then = "its peers will not know that it has finished" if finished else "it tries again with the next"
                logger.warning(
                    "%s could not publish its weights of update %d in %s (%s): %s",
                    *(self._who, update, self.directory.path, error, then),
                )
            else:
                self._traffic.sent["weights"] += size

        return publish
