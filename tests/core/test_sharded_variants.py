"""What people combine FSDP2 with, and meshes of more dimensions: teachers are built and sharded alike."""

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups
from codistill_ext.exchange import Batch
from codistill_ext.exchange.wire.shard_weights import packer_of
from codistill_ext.exchange.wire.shards import check_not_offloaded
from codistill_ext.parallel import IdenticalModelsWarning
from codistill_ext.rows import DenseLogits
from codistill_ext.traffic import predicted_weights
from tests.core.training import batches, build, needs_fsdp, run, shard
from tests.naive import Net
from tests.ranks import RankError, run_ranks

pytestmark = needs_fsdp

OPTIONS = {"models": 2, "exchange": "checkpoints", "period": 2, "lag": 1}
UPDATES = 6


def _module_at_once(groups: ModelGroups) -> CodistillParallel:
    return CodistillParallel(build(groups.model_index), groups, CodistillConfig(**OPTIONS), data_parallel=shard)


def _sharded_already(groups: ModelGroups) -> CodistillParallel:
    module = shard(build(groups.model_index), groups)
    config = CodistillConfig(**OPTIONS)
    return CodistillParallel(module, groups, config, build_peer=lambda _: shard(Net(), groups))


def _from_the_meta_device(groups: ModelGroups) -> CodistillParallel:
    def materialised(module: nn.Module, groups: ModelGroups) -> nn.Module:
        module = shard(module, groups).to_empty(device="cpu")
        whole = build(groups.model_index).state_dict()
        set_model_state_dict(module, whole, options=StateDictOptions(full_state_dict=True))
        return module

    with torch.device("meta"):
        module = Net()
    return CodistillParallel(module, groups, CodistillConfig(**OPTIONS), data_parallel=materialised)


def _checkpointed(groups: ModelGroups) -> CodistillParallel:
    def wrapped(module: nn.Module, groups: ModelGroups) -> nn.Module:
        module.first, module.last = checkpoint_wrapper(module.first), checkpoint_wrapper(module.last)
        return shard(module, groups)

    return CodistillParallel(build(groups.model_index), groups, CodistillConfig(**OPTIONS), data_parallel=wrapped)


def _compiled(groups: ModelGroups) -> CodistillParallel:
    def compiled(module: nn.Module, groups: ModelGroups) -> nn.Module:
        module.first.compile(backend="eager")  # a layer in place, and the whole in a module of its own
        return torch.compile(shard(module, groups), backend="eager")

    return CodistillParallel(build(groups.model_index), groups, CodistillConfig(**OPTIONS), data_parallel=compiled)


def _in_16_bits(groups: ModelGroups) -> CodistillParallel:
    def mixed(module: nn.Module, groups: ModelGroups) -> nn.Module:
        in_32_bits = MixedPrecisionPolicy(param_dtype=torch.float32, output_dtype=torch.bfloat16)
        fully_shard(module.norm, mesh=groups.model_mesh, mp_policy=in_32_bits)
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        return fully_shard(module, mesh=groups.model_mesh, mp_policy=policy)

    return CodistillParallel(build(groups.model_index), groups, CodistillConfig(**OPTIONS), data_parallel=mixed)


VARIANTS: list[Callable[[ModelGroups], CodistillParallel]] = [
    _module_at_once,
    _sharded_already,
    _from_the_meta_device,
    _checkpointed,
    _compiled,
    _in_16_bits,
]


def _train_variants(rank: int) -> list[dict[str, Any]]:
    found = []
    for variant in VARIANTS:
        groups = ModelGroups.create(CodistillConfig(**OPTIONS))
        model = variant(groups)
        (teacher,) = model.exchange.teachers.values()
        seen: list[torch.dtype] = []
        result = run(model, UPDATES)
        teacher.module.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(output.dtype))
        x, _ = batches(0, 0, 0, coordinated=True)
        logits = model(x)
        model.exchange.targets(_batch(model, x, logits), update=UPDATES, wanted=True)
        found.append(
            result
            | {
                "layout": teacher.packer.whole.layout,
                "dtypes": (logits.dtype, seen[0]),
                "kinds": {type(parameter) for parameter in teacher.module.parameters()},
                "elements": sum(p.to_local().numel() for p in teacher.module.parameters()),
                "frozen": not teacher.module.training and not any(p.requires_grad for p in teacher.module.parameters()),
            }
        )
    return found


def _batch(model: CodistillParallel, x: Tensor, logits: Tensor) -> Batch:
    return Batch(x, DenseLogits(logits), lambda output: output, None)


@pytest.mark.slow
def test_variants_train_as_the_plain_sharded_model_does() -> None:
    for results in run_ranks(4, _train_variants):
        reference = results[0]
        assert [peers for _, peers in reference["terms"]] == [0, 0, 0, 1, 1, 1]
        for variant, result in zip(VARIANTS, results, strict=True):
            name = variant.__name__
            half = variant is _in_16_bits
            assert result["layout"] == reference["layout"], f"{name}: wrappers leave no trace in names"
            assert result["dtypes"] == ((torch.bfloat16,) * 2 if half else (torch.float32,) * 2), name
            assert result["kinds"] == {DTensor} and result["frozen"], f"{name}: gathered weights are freed"
            assert result["elements"] <= sum(p.numel() for p in Net().parameters()) / 2 + 12, "half a model a rank"
            for key, tensor in result["state"].items():
                key = key.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")
                tolerance = 0.05 if half else 1e-5  # 8 bits of a bfloat16
                torch.testing.assert_close(
                    tensor, reference["state"][key], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
                )


def _in_two_replicas(rank: int) -> tuple[dict[str, Any], int, int]:
    mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("codistill", "dp_replicate", "dp_shard"))
    config = CodistillConfig(**OPTIONS)
    groups = ModelGroups.from_mesh(mesh, config)
    model = CodistillParallel(build(groups.model_index), groups, config, data_parallel=shard)
    result = run(model, UPDATES)
    one = predicted_weights(config, 0, model_bytes=packer_of(model.plain, half=False).total_bytes, ranks=2)
    return result, one["sent/weights"] * (UPDATES // 2), groups.data_size


def _in_one_replica(rank: int) -> dict[str, Any]:
    """The same with each parameter in full on each of four ranks."""
    config = CodistillConfig(**OPTIONS)
    groups = ModelGroups.create(config)
    return run(CodistillParallel(build(groups.model_index), groups, config), UPDATES)


@pytest.mark.slow
def test_replicas_of_shards_send_each_byte_once() -> None:
    plain = run_ranks(8, _in_one_replica)
    for (result, sent, data_size), expected in zip(run_ranks(8, _in_two_replicas), plain, strict=True):
        assert data_size == 4
        assert result["traffic"]["sent/weights"] == sent
        for name, tensor in result["state"].items():
            if "running" not in name:
                torch.testing.assert_close(tensor, expected["state"][name], rtol=0, atol=1e-5)


def _accumulates(rank: int) -> list[tuple[list[Tensor], int]]:
    found = []
    for how in shard, None:
        config = CodistillConfig(models=2)
        groups = ModelGroups.create(config)
        model = CodistillParallel(build(groups.model_index), groups, config, data_parallel=how)
        reductions = 0
        for index in range(3):
            x, y = batches(index, 0, groups.data_rank, coordinated=True)
            with contextlib.nullcontext() if index == 2 else model.no_sync():
                logits = model(x)
                (F.cross_entropy(logits, y) + model.codistill(x, logits).loss).backward()
            shards = [m for m in model.plain.modules() if isinstance(m, FSDPModule)]
            reductions += bool(shards) and isinstance(model.plain.last.weight.grad, DTensor)
        gradients = [parameter.grad for parameter in model.plain.parameters()]
        found.append(([g.full_tensor() if isinstance(g, DTensor) else g for g in gradients], reductions))
        model.close()
    return found


def test_gradients_stay_local_in_no_sync() -> None:
    for (sharded, reductions), (plain, _) in run_ranks(4, _accumulates):
        assert reductions == 1, "only the last micro-batch's gradients are reduced"
        for first, second in zip(sharded, plain, strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def _twins(rank: int) -> str:
    config = CodistillConfig(models=2)
    groups = ModelGroups.create(config)
    with pytest.warns(IdenticalModelsWarning) as caught:
        CodistillParallel(build(0), groups, config, data_parallel=shard)
    return str(caught[0].message)


def test_sharded_models_that_start_the_same_are_warned_of() -> None:
    for text in run_ranks(4, _twins):
        assert "models 0, 1 start with the same weights" in text


def _mistakes(rank: int) -> list[str]:
    config = CodistillConfig(**OPTIONS)
    groups = ModelGroups.create(config)

    def sharded_and_alone() -> None:
        CodistillParallel(shard(build(0), groups), groups, config)

    def built_in_full() -> None:
        CodistillParallel(shard(build(0), groups), groups, config, build_peer=lambda _: Net())

    def on_the_meta_device() -> None:
        with torch.device("meta"):
            module = Net()
        CodistillParallel(module, groups, config, data_parallel=shard)

    def teachers_elsewhere() -> None:
        other = CodistillConfig(**OPTIONS, teacher_device="cpu")
        CodistillParallel(build(0), groups, other, data_parallel=shard)

    def offloaded() -> None:
        # What CPUOffloadPolicy leaves on CUDA: a mesh that computes elsewhere than its shards are.
        sharded = shard(build(0), groups)
        check_not_offloaded(sharded)
        with mock.patch.object(DeviceMesh, "device_type", "cuda"):
            check_not_offloaded(sharded)

    texts = []
    for mistake in sharded_and_alone, built_in_full, on_the_meta_device, teachers_elsewhere, offloaded:
        with pytest.raises(ValueError) as error:
            mistake()
        texts.append(str(error.value))
    return texts


def test_mistakes_are_named() -> None:
    alone, full, meta, elsewhere, offloaded = run_ranks(4, _mistakes)[0]
    assert "a module that is sharded already cannot be copied" in alone and "build_peer" in alone
    assert "built a teacher (tests.naive.Net) that is not" in full
    assert "the module is on the meta device: let data_parallel give it memory" in meta
    assert "--codistill-teacher-device cpu has no effect on a sharded teacher" in elsewhere
    assert "are on cpu, but their mesh is of cuda: leave out FSDP2's CPUOffloadPolicy" in offloaded


def _shards_otherwise(rank: int) -> None:
    config = CodistillConfig(**OPTIONS)
    groups = ModelGroups.create(config)

    def by_columns(module: nn.Module, groups: ModelGroups) -> nn.Module:
        if groups.model_index == 0:
            return shard(module, groups)
        return fully_shard(
            module, mesh=groups.model_mesh, shard_placement_fn=lambda parameter: Shard(min(1, parameter.ndim - 1))
        )

    CodistillParallel(build(groups.model_index), groups, config, data_parallel=by_columns)


def test_models_that_are_sharded_in_other_ways_are_refused() -> None:
    with pytest.raises(RankError, match="or how they are sharded, differ: first.weight"):
        run_ranks(4, _shards_otherwise)
