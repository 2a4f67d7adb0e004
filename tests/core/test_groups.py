"""Groups out of a mesh of the user's: who trains which model, who reads what, who talks to whom."""

import datetime
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import codistill_ext.groups as groups_module
from codistill_ext import CodistillConfig, ModelGroups
from tests.ranks import run_ranks

Shape = dict[str, int]


def _places(rank: int, meshes: list[Shape], options: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for shape in meshes:
        mesh = init_device_mesh("cpu", tuple(shape.values()), mesh_dim_names=tuple(shape))
        groups = ModelGroups.from_mesh(mesh, CodistillConfig(**options) if options else None)
        peers = dist.get_process_group_ranks(groups.peer_group) if groups.peer_group is not None else [rank]
        found.append(
            {
                "model": (groups.model_index, groups.num_models),
                "place": (groups.rank_in_model, groups.ranks_a_model),
                "data": (groups.data_rank, groups.data_size),
                "peers": peers,
                "counterparts": [groups.counterpart(index) for index in range(len(peers))],
                "dims": groups.model_mesh.mesh_dim_names if groups.model_mesh is not None else None,
                "mates": [
                    other
                    for other, index in enumerate(groups.gather(groups.model_index))
                    if index == groups.model_index
                ],
                "model_group": dist.get_process_group_ranks(groups.model_group),
            }
        )
    return found


MESHES: list[Shape] = [
    {"codistill": 2, "dp_shard": 2},
    {"codistill": 2, "dp_replicate": 1, "dp_shard": 1, "tp": 2},
    {"dp_replicate": 2, "codistill": 2},
]


def test_groups_of_meshes() -> None:
    results = run_ranks(4, _places, MESHES, {})
    for rank, (plain, tensor_parallel, inner) in enumerate(results):
        model, place = divmod(rank, 2)
        for found in plain, tensor_parallel:
            assert found["model"] == (model, 2) and found["place"] == (place, 2)
            assert found["peers"] == found["counterparts"] == [place, place + 2]
            assert found["model_group"] == found["mates"] == [2 * model, 2 * model + 1]
        assert plain["data"] == (place, 2) and plain["dims"] == ("dp_shard",)
        assert tensor_parallel["data"] == (0, 1), "ranks of a tensor-parallel group read the same batch"
        assert tensor_parallel["dims"] == ("dp_replicate", "dp_shard", "tp")
        place, model = divmod(rank, 2)
        assert inner["model"] == (model, 2) and inner["data"] == inner["place"] == (place, 2)
        assert inner["peers"] == [2 * place, 2 * place + 1] and inner["mates"] == [model, model + 2]


def test_a_job_of_its_own_needs_no_dimension_for_the_models() -> None:
    options = {"models": 3, "exchange": "files", "dir": "unused", "model_index": 1}
    for rank, (found,) in enumerate(run_ranks(2, _places, [{"dp_shard": 2}], options)):
        assert found["model"] == (1, 3) and found["data"] == (rank, 2) and found["peers"] == [rank]


def _refused(rank: int) -> list[str]:
    cases: list[tuple[Shape, dict[str, Any]]] = [
        ({"model": 2}, {}),
        ({"codistill": 2}, {"config": CodistillConfig(models=3)}),
        ({"codistill": 1, "pp": 2}, {}),
        ({"codistill": 2}, {"data_dims": ["dp"]}),
    ]
    texts = []
    for shape, arguments in cases:
        mesh = init_device_mesh("cpu", tuple(shape.values()), mesh_dim_names=tuple(shape))
        with pytest.raises(ValueError) as error:
            ModelGroups.from_mesh(mesh, **arguments)
        texts.append(str(error.value))
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("codistill", "dp_shard"))
    with pytest.raises(ValueError) as error:
        ModelGroups.from_mesh(mesh["dp_shard"], dim="dp_shard")
    texts.append(str(error.value))
    with pytest.raises(ValueError) as error:
        ModelGroups.from_mesh(DeviceMesh("cpu", [[1, 0]], mesh_dim_names=("codistill", "dp_shard")))
    return [*texts, str(error.value)]


def test_meshes_that_do_not_fit_are_refused() -> None:
    nameless, other, stages, unknown, part, descending = run_ranks(2, _refused)[0]
    assert "needs a dimension 'codistill' that counts the models, but has ('model',)" in nameless
    assert "has size 2, but there are 3 models" in other
    assert "stages of a pipeline" in stages
    assert "data_dims ['dp'] are not dimensions inside a model" in unknown
    assert "the mesh of the whole job (2 ranks), not a part of it with 1" in part
    assert "in ascending order in the mesh, not as [[1, 0]]" in descending


@pytest.mark.parametrize(
    ("backends", "warmed"),
    [("cuda:nccl", True), ("cpu:gloo,cuda:nccl", True), ("cpu:gloo,cuda:gloo", False), ("cpu:gloo", False)],
)
def test_nccl_is_warmed_up_whoever_chose_it(backends: str, warmed: bool) -> None:
    """A job that names no backend has NCCL too, and ``get_backend`` says ``undefined`` of it."""
    reduced, timeouts = mock.Mock(), mock.Mock()
    with (
        mock.patch.multiple(groups_module, set_timeout=timeouts),
        mock.patch.multiple(dist, get_backend_config=lambda group: backends, all_reduce=reduced),
        mock.patch.object(torch, "zeros", lambda size, device: (size, device)),
    ):
        groups_module._prepare(["the group"], CodistillConfig(models=2))
    assert timeouts.mock_calls == [mock.call(datetime.timedelta(seconds=1800), "the group")]
    assert reduced.mock_calls == ([mock.call((1, "cuda"), group="the group")] if warmed else [])
