"""(fairseq) ``--task codistill_translation``: translation that refuses models with unlike vocabularies early."""

from typing import Any

from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from codistill_ext.criterions import codistill_label_smoothed_ce  # noqa: F401  registers it
from codistill_ext.fairseq_plugin import launch, trainer


def train(cfg: Any, **kwargs: Any) -> None:
    """What fairseq runs in each process; a process that it spawned imports this module, and so the plug-in, for it."""
    launch.train_one_model(cfg, **kwargs)


launch.install(train)


@register_task("codistill_translation", dataclass=TranslationConfig)
class CodistillTranslationTask(TranslationTask):
    """fairseq's translation task; the vocabularies are compared before data and models are built.

    With any other task the trainer compares them after that. Checkpoints name the task
    ``translation``, so that fairseq's own commands read them without this plug-in.
    """

    @classmethod
    def setup_task(cls, cfg: TranslationConfig, **kwargs: Any) -> "CodistillTranslationTask":
        task = super().setup_task(cfg, **kwargs)
        groups = launch.current_groups()
        if groups is not None:
            trainer.check_vocabularies(task, groups)
        return task
