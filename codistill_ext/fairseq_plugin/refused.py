"""(fairseq) Options of fairseq's that are refused before anything starts, each with its reason."""

from typing import Any

from codistill_ext.config import CodistillConfig


def refuse_what_mixes_models(cfg: Any) -> None:
    """What works on the whole job: with several models it would average or log them together.

    Raises:
        ValueError: the option, and what to use instead.
    """
    training = cfg.distributed_training
    mixing = {
        "--ddp-backend slowmo": training.ddp_backend == "slowmo",
        "--ddp-backend fully_sharded": training.ddp_backend == "fully_sharded",
        "--use-bmuf": cfg.optimization.use_bmuf,
        "--pipeline-model-parallel": training.pipeline_model_parallel,
        "--model-parallel-size": cfg.common.model_parallel_size > 1,
        "--tpu": cfg.common.tpu,
    }
    for option, given in mixing.items():
        if given:
            raise ValueError(
                f"{option} works on the whole job and would mix the {cfg.criterion.codistill_models} models: "
                f"use --ddp-backend pytorch_ddp or legacy_ddp without it"
            )
    for option in ("azureml_logging", "aim_run_hash"):
        if getattr(cfg.common, option, None) and cfg.criterion.codistill_exchange != "files":
            raise ValueError(
                f"--{option.replace('_', '-')} would log all models under the same names: use --tensorboard-logdir "
                f"or --wandb-project, which keep them apart"
            )


def refuse_what_does_not_go(cfg: Any, config: CodistillConfig) -> None:
    """What the criterion would silently do without, and what takes from it what it needs; ``cfg`` is of one model.

    Raises:
        ValueError: the option, the reason, and what to do.
    """
    if cfg.checkpoint.write_checkpoints_asynchronously:
        raise ValueError("--write-checkpoints-asynchronously leaves no whole checkpoint_last.pt: leave it out")
    if getattr(cfg.task, "load_alignments", False):
        raise ValueError(
            f"--load-alignments has no effect: {cfg.criterion._name} has no alignment loss. Leave it out, or train "
            f"one model with fairseq's label_smoothed_cross_entropy_with_alignment"
        )
    if cfg.criterion.codistill_weight_decay and getattr(cfg.optimizer, "weight_decay", None) is None:
        raise ValueError(
            f"--codistill-weight-decay replaces --weight-decay, which --optimizer {cfg.optimizer._name} does not have: "
            f"leave it out, or take adam, sgd or another optimizer that decays weights"
        )
    if config.active and getattr(cfg.model, "adaptive_softmax_cutoff", None):
        raise ValueError(
            "with --adaptive-softmax-cutoff a model returns no logits over the vocabulary to compare with its "
            "peers': leave it out (some architectures, such as transformer_lm_wiki103, set it: take another)"
        )
