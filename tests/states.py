"""States of runs, nested containers of tensors and plain values, compared."""

from typing import Any

import torch
from torch import Tensor


def assert_same(first: Any, second: Any, path: str = "state") -> None:
    """Compare nested containers bit by bit."""
    assert type(first) is type(second), path
    if isinstance(first, Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{path}[{index}]")
    else:
        assert first == second, path


def without(state: Any, keys: tuple[str, ...]) -> Any:
    """The state without these keys, at any depth."""
    if isinstance(state, dict):
        return {key: without(value, keys) for key, value in state.items() if key not in keys}
    if isinstance(state, list | tuple):
        return type(state)(without(value, keys) for value in state)
    return state
