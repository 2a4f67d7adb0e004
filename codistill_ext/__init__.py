"""Codistillation for distributed training: models that train at the same time and learn from each other."""

from codistill_ext.config import CodistillConfig
from codistill_ext.groups import ModelGroups
from codistill_ext.loss import CodistillTerm, codistillation_term, divergence
from codistill_ext.parallel import CodistillParallel
from codistill_ext.rows import LinearLogits
from codistill_ext.sampling import CodistillSampler, data_seed, model_seed, sample_seed

__all__ = [
    "CodistillConfig",
    "CodistillParallel",
    "CodistillSampler",
    "CodistillTerm",
    "LinearLogits",
    "ModelGroups",
    "codistillation_term",
    "data_seed",
    "divergence",
    "model_seed",
    "sample_seed",
]
