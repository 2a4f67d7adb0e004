"""How the tests are run: with a Python that is warm, or with a real interpreter for each command."""

import pytest

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
