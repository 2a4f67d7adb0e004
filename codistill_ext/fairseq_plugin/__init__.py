"""(fairseq) Where fairseq meets the model groups: launch, trainer, checkpoints, models.

May import fairseq and all of the core; only ``tasks/`` and ``hydra_train`` import it, and nothing of the core.
"""
