"""Loops with Accelerate, with and without the coupling; importable by the ranks."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from codistill_ext import CodistillConfig, CodistillSampler, data_seed, model_seed
from codistill_ext.integrations.own_world import join
from tests.integrations.tiny import like_torchrun, state_of

SEED, EPOCHS, STEPS_AN_EPOCH = 11, 2, 3  # updates of two micro-batches
SAVED = 4  # the update after which a run is saved: in the middle of its second epoch


def _net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 4))


def _data() -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(48, 6, generator=generator), torch.randint(0, 4, (48,), generator=generator))


def _loader(ranks: int) -> Any:
    """With a generator: else an epoch draws from the random state of dropout as it begins, also when it is resumed."""
    batch_size = 48 // (2 * STEPS_AN_EPOCH * ranks)
    return DataLoader(_data(), batch_size=batch_size, shuffle=True, generator=torch.Generator())


def _accelerator(order: int, **more: Any) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    loading = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=order)
    return Accelerator(cpu=True, gradient_accumulation_steps=2, dataloader_config=loading, **more)


def plain(rank: int, world_size: int, model_index: int) -> dict[str, Any]:
    """What the host does alone, with the seed of one of the models."""
    like_torchrun(rank, world_size)
    accelerator = _accelerator(SEED)
    net = _net(model_seed(SEED, model_index))
    loader = _loader(world_size)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    for _ in range(EPOCHS):
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
    return {"state": state_of(net)}


def coupled(
    rank: int,
    world_size: int,
    options: dict[str, Any],
    run: str,
    save: bool = False,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A job of models as a user would write it: saved in the middle, or resumed from there if it was."""
    like_torchrun(rank, world_size)
    from accelerate import skip_first_batches

    from codistill_ext.integrations.hf_accelerate import AcceleratedCoupling

    config = CodistillConfig(timeout=60.0, **options)
    world = join(config, "cpu")
    groups = world.groups
    accelerator = _accelerator(data_seed(config, groups, SEED), **(more or {}))
    net = _net(model_seed(SEED, groups.model_index))
    coupling = AcceleratedCoupling(accelerator, net, world)
    loader = _loader(groups.data_size)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    found = coupling.newest_checkpoint(run)
    if found is not None:
        accelerator.load_state(str(found))
    terms = []
    for epoch in range(coupling.updates // STEPS_AN_EPOCH, EPOCHS):
        loader.set_epoch(epoch)
        done = coupling.updates - epoch * STEPS_AN_EPOCH
        for x, y in skip_first_batches(loader, 2 * done) if done else loader:
            with accelerator.accumulate(model):
                logits = model(x)
                term = coupling.codistill(x, logits)
                accelerator.backward(F.cross_entropy(logits, y) + term.loss)
                optimizer.step()
                optimizer.zero_grad()
                coupling.after_update()
            terms.append(accelerator.reduce(term.divergence, reduction="mean").item())
            if save and accelerator.sync_gradients and coupling.updates == SAVED:
                accelerator.save_state(str(coupling.directory(run) / f"checkpoint_{coupling.updates}"))
    coupling.close()
    return {
        "model": groups.model_index,
        "state": state_of(net),
        "terms": terms,
        "updates": coupling.updates,
        "main": accelerator.is_main_process,
        "gathered": accelerator.gather(torch.tensor([rank])).tolist(),
        "autocast": coupling.parallel.autocast,
    }


def mistakes(rank: int, world_size: int, run: str) -> dict[str, str]:
    """What each of them is told."""
    like_torchrun(rank, world_size)
    from codistill_ext.integrations.hf_accelerate import AcceleratedCoupling

    early = _accelerator(SEED)
    world = join(CodistillConfig(models=2, timeout=60.0), "cpu")
    told = {"an Accelerator before join": _message(lambda: AcceleratedCoupling(early, _net(0), world))}
    early.state._reset_state(reset_partial_state=True)
    accelerator = _accelerator(SEED)
    prepared = accelerator.prepare(_net(0))
    told["a prepared module"] = _message(lambda: AcceleratedCoupling(accelerator, prepared, world))
    net = _net(rank)
    coupling = AcceleratedCoupling(accelerator, net, world)
    told["not prepared"] = _message(lambda: coupling.codistill(torch.ones(2, 6), net(torch.ones(2, 6))))
    told["one directory"] = _message(lambda: accelerator.save_state(run))
    sampler = CodistillSampler(48, world.groups, world.config)
    accelerator.prepare(net, DataLoader(_data(), batch_size=4, sampler=sampler))
    told["sharded twice"] = _message(lambda: coupling.codistill(torch.ones(2, 6), net(torch.ones(2, 6))))
    uneven = _accelerator(SEED)
    uneven.dataloader_config.even_batches = False
    told["uneven batches"] = _message(lambda: AcceleratedCoupling(uneven, _net(0), world))
    told["files there"] = str(sorted(path.name for path in Path(run).glob("*")))
    return told


def _message(call: Any) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""
