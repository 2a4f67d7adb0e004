"""How the tests are run: with a Python that is warm, or with a real interpreter for each command; which are quick."""

import os
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # ranks have one thread, and bits are compared with theirs

from tests import commands, warm


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real-python", action="store_true", help="start a real interpreter for each command: slow")


def pytest_configure(config: pytest.Config) -> None:
    commands.real_python = config.option.real_python
    if not config.option.collectonly:
        warm.directory()  # it imports while the tests are collected


@pytest.fixture(autouse=True)
def _interpreter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("real_python"):
        monkeypatch.setattr(commands, "real_python", True)
        monkeypatch.setattr(sys, "executable", warm.REAL_PYTHON)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        function = getattr(item, "function", None)
        long = item.get_closest_marker("slow") or item.get_closest_marker("real_python")
        if not long and not (function and _starts_commands(function, set())):
            item.add_marker("quick")


def _starts_commands(function: FunctionType, seen: set[FunctionType]) -> bool:
    """It, or a function beside it that it calls, names one from a module ``commands``."""
    seen.add(function)
    for name in _names(function.__code__):
        named = function.__globals__.get(name)
        if not isinstance(named, FunctionType):
            continue
        if named.__module__.endswith(".commands"):
            return True
        if named.__module__ == function.__module__ and named not in seen and _starts_commands(named, seen):
            return True
    return False


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
