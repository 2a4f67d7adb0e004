"""Data order, seeds and fingerprints."""

import pytest
import torch

from codistill_ext import CodistillConfig, CodistillSampler, ModelGroups, data_seed, model_seed, sample_seed
from codistill_ext.groups import place_ranks
from codistill_ext.sampling import fingerprint, own_part


def groups(rank: int, models: int, ranks: int) -> ModelGroups:
    groups = ModelGroups.__new__(ModelGroups)  # a place in the table, without processes
    table = place_ranks(models * ranks, models)
    groups._table, groups.rank, groups.world_size = table, rank, models * ranks
    groups.num_models, groups.data_size = models, ranks
    groups.model_index, groups.data_rank = divmod(rank, ranks)
    return groups


def order(rank: int, config: CodistillConfig, *, epoch: int = 0, ranks: int = 2, **options: object) -> list[int]:
    sampler = CodistillSampler(11, groups(rank, config.models, ranks), config, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_placement() -> None:
    assert place_ranks(6, 2).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert place_ranks(6, 2, "interleaved").tolist() == [[0, 2, 4], [1, 3, 5]]
    with pytest.raises(ValueError, match="4 models need a world size that is a multiple of 4, but it is 6"):
        place_ranks(6, 4)


def test_coordinated_models_read_the_same_shards() -> None:
    config = CodistillConfig(models=2)
    shards = [order(rank, config) for rank in range(4)]
    assert shards[0] == shards[2] and shards[1] == shards[3]
    assert sorted(set(shards[0] + shards[1])) == list(range(11)), "every sample is read"
    assert len(shards[0]) == len(shards[1]) == 6, "the shares are equal"
    assert order(0, config, epoch=1) != shards[0]
    assert order(0, config, seed=1) != shards[0]


def test_independent_models_read_other_orders() -> None:
    config = CodistillConfig(models=2, exchange="checkpoints")
    assert order(0, config) != order(2, config)
    assert order(0, config) == order(0, CodistillConfig(models=2)), "model 0 reads what it would alone"


@pytest.mark.parametrize("models,ranks", [(2, 2), (3, 1)])
@pytest.mark.parametrize("samples", [11, [9, 2, 0, 7, 5]], ids=["all", "some"])
def test_disjoint_models_never_read_the_same_sample(models: int, ranks: int, samples: int | list[int]) -> None:
    config = CodistillConfig(models=models, exchange="checkpoints", data="disjoint")
    given = None if isinstance(samples, int) else samples
    parts = []
    for model in range(models):
        places = [(model * ranks + shard, epoch) for shard in range(ranks) for epoch in range(4)]
        read = [order(rank, config, ranks=ranks, epoch=epoch, samples=given) for rank, epoch in places]
        parts.append(set(sum(read, [])))
        assert all(len(one) == len(read[0]) for one in read), "an epoch is one pass over the own part"
    assert sum(map(len, parts)) == len(set.union(*parts)), "no sample is in two parts"
    assert set.union(*parts) == set(range(11) if given is None else given)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    alone = CodistillConfig(models=1, data="disjoint")
    assert order(0, alone) == order(0, CodistillConfig()), "one model has everything"


def test_parts_are_shared_out_class_by_class() -> None:
    classes = torch.tensor([4, 0, 2, 2, 0, 4, 0, 2, 4, 4, 2, 0])
    samples = classes.argsort(stable=True)
    config = CodistillConfig(models=2, exchange="checkpoints", data="disjoint")
    for model in (0, 1):
        assert classes[own_part(samples, config, groups(model, 2, 1), 0)].bincount().tolist() == [2, 0, 2, 0, 2]
    seeds = [own_part(1000, config, groups(0, 2, 1), seed) for seed in (0, 1, 0)]
    assert torch.equal(seeds[0], seeds[2]) and not torch.equal(seeds[0], seeds[1])


def test_an_epoch_of_many_passes() -> None:
    """4 of 11 samples, epochs of 11: one endless row of permutations, cut into epochs."""
    sampler = CodistillSampler(11, groups(0, 1, 1), CodistillConfig(), samples=[8, 1, 5, 2], epoch_samples=11)
    row: list[tuple[int, int]] = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        row += sampler.with_passes()
        assert len(sampler) == len(list(sampler)) == 11
    assert len(row) == 44 == len(set(row)), "a sample comes once a pass"
    for number in range(11):
        one = row[4 * number : 4 * number + 4]
        assert {index for index, _ in one} == {1, 2, 5, 8} and {p for _, p in one} == {number}
    orders = {tuple(index for index, _ in row[i : i + 4]) for i in range(0, 44, 4)}
    assert len(orders) > 5


def test_many_passes_on_two_ranks_and_from_the_middle() -> None:
    def draws(rank: int, position: int = 0) -> list[tuple[int, int]]:
        sampler = CodistillSampler(11, groups(rank, 1, 2), CodistillConfig(), samples=[8, 1, 5, 2], epoch_samples=11)
        sampler.set_epoch(2)
        sampler.set_position(position)
        return list(sampler.with_passes())

    both = [draw for pair in zip(draws(0), draws(1), strict=True) for draw in pair]
    assert len(both) == 12 and both[11] == both[0], "the shares are equal"
    alone = CodistillSampler(11, groups(0, 1, 1), CodistillConfig(), samples=[8, 1, 5, 2], epoch_samples=11)
    alone.set_epoch(2)
    assert both[:11] == list(alone.with_passes())
    assert draws(1, position=4) == draws(1)[4:]


def test_drop_last_and_resuming_in_the_middle() -> None:
    config = CodistillConfig(models=2)
    assert len(order(0, config, drop_last=True)) == 5
    sampler = CodistillSampler(11, groups(1, 2, 2), config)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_position(4)
    assert list(sampler) == whole[4:] and len(sampler) == 2
    with pytest.raises(ValueError, match="1 samples cannot be shared among 2 ranks"):
        CodistillSampler(1, groups(0, 2, 2), config, drop_last=True)


def test_seeds() -> None:
    assert model_seed(5, 0) == 5
    assert len({model_seed(seed, index) for seed in range(50) for index in range(8)}) == 400
    assert len({sample_seed(0, epoch, index) for epoch in range(20) for index in range(500)}) == 10000
    coordinated, independent = CodistillConfig(models=2), CodistillConfig(models=2, exchange="checkpoints")
    assert data_seed(coordinated, groups(2, 2, 2), 7) == 7
    assert data_seed(independent, groups(2, 2, 2), 7) == model_seed(7, 1)


def test_fingerprints_see_every_change() -> None:
    x = torch.arange(24, dtype=torch.float32).view(2, 3, 4)
    batch = {"tokens": torch.arange(6).view(2, 3), "image": x}
    same = {"image": x.clone(), "tokens": torch.arange(6).view(2, 3)}
    assert fingerprint(batch) == fingerprint(same)
    assert fingerprint(x.to(memory_format=torch.preserve_format)) == fingerprint(x)
    changed = x.clone()
    changed[1, 2, 3] += 1e-5
    others = [changed, x.view(3, 2, 4), x.flip(0), x.half(), x > 3, x[:1], (x, x)]
    assert len({fingerprint(value) for value in [x, *others]}) == 8
    image = torch.randn(8, 3, 64, 64)
    assert fingerprint(image) == fingerprint(image.contiguous(memory_format=torch.channels_last))
