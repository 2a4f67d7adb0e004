"""Loops with Lightning Fabric, with and without the strategy of codistillation; importable by the ranks."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from codistill_ext import CodistillConfig, CodistillSampler, ModelGroups, model_seed
from codistill_ext.job.sharded import load_sharded, save_sharded
from tests.integrations.tiny import like_torchrun, state_of

SEED, EPOCHS, BATCH = 7, 2, 4
SAVED = 3  # updates; in the middle of the first epoch
TWO = {"models": 2}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 4))


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(48, 6, generator=generator), torch.randint(0, 4, (48,), generator=generator))


def launched(rank: int, world_size: int, strategy: Any, **options: Any) -> Any:
    like_torchrun(rank, world_size)
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    os.environ.pop("PL_GLOBAL_SEED", None)
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=world_size, strategy=strategy, **options)
    fabric.launch()
    return fabric


def codistill(options: dict[str, Any], **more: Any) -> Any:
    from codistill_ext.integrations.fabric import CodistillStrategy

    return CodistillStrategy(CodistillConfig(timeout=60.0, **options), seed=SEED, **more)


def train(fabric: Any, couple: Callable[[Tensor, Tensor], Tensor], after: Callable[[], None]) -> Any:
    """The host's own way: its loader, accumulation over two micro-batches, clipping; the model's state."""
    torch.manual_seed(fabric_seed())
    module = net()
    model, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9))
    loader = fabric.setup_dataloaders(DataLoader(data(), batch_size=BATCH, shuffle=True))
    for _ in range(EPOCHS):
        for number, (x, y) in enumerate(loader):
            with fabric.no_backward_sync(model, enabled=number % 2 == 0):
                logits = model(x)
                fabric.backward(F.cross_entropy(logits, y) + couple(x, logits))
            if number % 2 == 1:
                fabric.clip_gradients(model, optimizer, max_norm=1.0)
                optimizer.step()
                optimizer.zero_grad()
                after()
    return state_of(module)


def fabric_seed() -> int:
    return int(os.environ["PL_GLOBAL_SEED"])


def plain(rank: int, world_size: int, model_index: int, precision: str) -> Any:
    """What the host does alone, with the seed of one of the models and the data of the first."""
    fabric = launched(rank, world_size, "ddp", precision=precision)
    fabric.seed_everything(model_seed(SEED, model_index), verbose=False)
    real = fabric.strategy.distributed_sampler_kwargs
    type(fabric.strategy).distributed_sampler_kwargs = property(lambda _: real | {"seed": SEED})
    return train(fabric, lambda x, logits: logits.new_zeros(()), lambda: None)


def coupled(rank: int, world_size: int, options: dict[str, Any], precision: str, ddp: dict[str, Any]) -> dict[str, Any]:
    """The same loop with the strategy, and what Fabric takes for its world."""
    strategy = codistill(options, **ddp)
    fabric = launched(rank, world_size, strategy, precision=precision)
    terms: list[float] = []

    def couple(x: Tensor, logits: Tensor) -> Tensor:
        term = strategy.codistill(x, logits)
        terms.append(fabric.all_reduce(term.divergence).item())
        return term.loss

    state = train(fabric, couple, lambda: strategy.coupling.after_update())
    seen = {
        "reduced": fabric.all_reduce(torch.tensor(float(rank)), reduce_op="sum").item(),
        "gathered": fabric.all_gather(torch.tensor(rank)).flatten().tolist(),
        "broadcast": fabric.broadcast(rank),
        "place": (fabric.global_rank, fabric.world_size, fabric.is_global_zero),
        "decided": strategy.reduce_boolean_decision(rank >= world_size // 2),
    }
    strategy.coupling.leave()
    fabric.barrier()
    strategy.coupling.close()
    return {"state": state, "terms": terms, "updates": strategy.coupling.updates, "seen": seen}


def resuming(rank: int, options: dict[str, Any], precision: str, run: str, save: bool) -> dict[str, Any]:
    """docs/fabric.md: the sampler of the method, saved in the middle of an epoch or resumed from there."""
    strategy = codistill(TWO | options)
    fabric = launched(rank, 4, strategy, precision=precision)
    module = net()
    model, optimizer = fabric.setup(module, torch.optim.AdamW(module.parameters(), lr=1e-2))
    sampler = CodistillSampler(48, strategy.groups, strategy.config, seed=SEED)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "epoch": 0, "position": 0}
    found = strategy.newest_checkpoint(run)
    if found is not None:
        fabric.load(found / "state.ckpt", state)
    terms = []
    for epoch in range(state["epoch"], EPOCHS):
        sampler.set_epoch(epoch)
        sampler.set_position(state["position"])
        # With a generator: else an epoch draws from the random state of dropout as it begins, also when it is resumed.
        for x, y in DataLoader(data(), batch_size=BATCH, sampler=sampler, generator=torch.Generator()):
            logits = model(x)
            term = strategy.codistill(x, logits)
            optimizer.zero_grad()
            fabric.backward(F.cross_entropy(logits, y) + term.loss)
            optimizer.step()
            strategy.coupling.after_update()
            terms.append(term.divergence.item())
            state["position"] += len(x)
            updates = strategy.coupling.updates
            if save and updates == SAVED:
                fabric.save(strategy.directory(run) / f"checkpoint_{updates}" / "state.ckpt", state | {"epoch": epoch})
        state["position"] = 0
    strategy.coupling.close()
    return {"state": state_of(module), "terms": terms, "found": found is not None}


def mistakes(rank: int, run: str) -> dict[str, str]:
    """What each of them is told."""
    strategy = codistill(TWO)
    told = {"early": _message(lambda: strategy.groups), "no module": _message(lambda: strategy.coupling)}
    told["a group"] = _message(lambda: codistill(TWO, process_group=None))
    fabric = launched(rank, 4, strategy)
    module = net()
    with _environment("PL_GLOBAL_SEED", "1"):
        told["seeds"] = _message(lambda: fabric.setup(module))
    model = fabric.setup(module)
    told["twice"] = _message(lambda: fabric.setup(net()))
    told["one file"] = _message(lambda: fabric.save(Path(run) / "state.ckpt", {"model": model}))
    sampler = CodistillSampler(48, strategy.groups, strategy.config)
    loader = DataLoader(data(), batch_size=BATCH, sampler=sampler)
    for sharded in (True, False):
        told[f"loader {sharded}"] = _message(
            lambda sharded=sharded: fabric.setup_dataloaders(loader, use_distributed_sampler=sharded)
        )
    strategy.config = CodistillConfig(models=2, exchange="checkpoints", data="disjoint")
    told["disjoint"] = _message(lambda: fabric.setup_dataloaders(DataLoader(data())))
    return told


def program(rank: int, source: str, directory: str) -> list[tuple[int, str]]:
    """Run the page's program twice; the lines that this rank prints, with how often it was started before."""
    like_torchrun(rank, 4)
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    os.chdir(directory)
    printed = []
    for start, text in enumerate((source.replace("1, 4\n", "1, 2\n", 1), source)):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(text, "fabric.md", "exec"), {})
        printed += [(start, line) for line in output.getvalue().splitlines()]
    return printed


def _shard(module: nn.Module, groups: ModelGroups) -> nn.Module:
    return fully_shard(module, mesh=groups.model_mesh)


def sharded(rank: int, run: str) -> dict[str, Any]:
    """FSDP2 by the strategy's data_parallel: an update, and what is refused."""
    strategy = codistill(TWO, coupling={"data_parallel": _shard})
    fabric = launched(rank, 4, strategy)
    module = net()
    model = fabric.setup_module(module)
    optimizer = fabric.setup_optimizers(torch.optim.SGD(model.parameters(), lr=0.1))
    before = [parameter.full_tensor().clone() for parameter in model.parameters()]
    x = torch.ones(2, 6)
    logits = model(x)
    term = strategy.codistill(x, logits)
    fabric.backward(term.loss)
    fabric.clip_gradients(model, optimizer, max_norm=1.0)
    optimizer.step()
    strategy.coupling.after_update()
    moved = [not torch.equal(old, new.full_tensor()) for old, new in zip(before, model.parameters(), strict=True)]
    path = save_sharded(Path(run), strategy.coupling, optimizer)
    changed = [parameter.full_tensor().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load_sharded(Path(run), strategy.coupling, optimizer)
    loaded = [torch.equal(old, new.full_tensor()) for old, new in zip(changed, model.parameters(), strict=True)]
    told = {"peers": term.peers, "moved": any(moved), "loaded": path.is_dir() and all(loaded)}
    told |= {"saved": _message(lambda: fabric.save(strategy.directory(run) / "state.ckpt", {"model": model}))}
    strategy.coupling.close()
    early = codistill(TWO, coupling={"data_parallel": _shard})
    fabric, module = launched(rank, 4, early), net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    told["optimizer"] = _message(lambda: fabric.setup(module, optimizer))
    return told | {"rank": fabric.global_rank}


def _message(call: Callable[[], Any]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ[name]
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ[name] = before
