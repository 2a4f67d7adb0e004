"""Models from descriptions, which may come from somebody else's file."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary

from codistill_ext import CodistillConfig, ModelGroups
from codistill_ext.criterions.codistill_label_smoothed_ce import _logits
from codistill_ext.errors import Mistake
from codistill_ext.exchange import ModelDescription
from codistill_ext.fairseq_plugin.models import build_described, vocabularies
from codistill_ext.fairseq_plugin.trainer import check_vocabularies
from tests.ranks import RankError, run_ranks

TASK = SimpleNamespace()  # none of these gets as far as asking it for anything


def _description(name: str, **options: Any) -> ModelDescription:
    return ModelDescription(name, {"structured": False, "options": {"_name": name, **options}})


@pytest.mark.parametrize(
    "options",
    [
        {"encoder_layers": "{code}"},
        {"encoder_layers": ["3", {"deeper": "{code}"}]},
        {"encoder_layers": {"{code}": 1}},
    ],
    ids=["text", "in a list", "as a name"],
)
def test_code_in_an_option_never_runs(tmp_path: Path, options: dict[str, Any]) -> None:
    """fairseq's fconv evaluates its encoder_layers as Python."""
    code = f"[(8, 3)] + [__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()]"

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {filled(key): filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [filled(item) for item in value]
        return value.replace("{code}", code) if isinstance(value, str) else value

    shape = {"encoder_embed_dim": 8, "decoder_embed_dim": 8, "decoder_layers": "1", "decoder_out_embed_dim": 8}
    with pytest.raises(ValueError, match="the peer's option encoder_layers is|the peer's option deeper is"):
        build_described(_description("fconv", **shape, **filled(options)), TASK)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("os.system", {}, "'os.system' is not registered with fairseq"),
        ("transformer", {}, "comes without its options"),
        ("transformer", {"options": {"_name": "fconv"}}, "comes without its options"),
        ("transformer", {"options": {"_name": "transformer"}}, "fairseq cannot build the peer's transformer"),
    ],
)
def test_what_is_no_description_is_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_described(ModelDescription(name, values), TASK)


def test_a_peer_with_another_dictionary_is_refused() -> None:
    """Of the same size, so that its weights would fit."""
    dictionaries = [SimpleNamespace(symbols=["<pad>", *words]) for words in (("a", "b"), ("b", "a"))]
    one, other = (SimpleNamespace(source_dictionary=own, target_dictionary=own) for own in dictionaries)
    assert vocabularies(one)["target"] != vocabularies(other)["target"]
    values = {"structured": False, "options": {"_name": "transformer"}, "vocabularies": vocabularies(other)}
    with pytest.raises(ValueError, match="the peer's dictionaries have other symbols or another order"):
        build_described(ModelDescription("transformer", values), one)


def _vocabulary(rank: int) -> None:
    dictionary = Dictionary()
    for symbol in "ab" if rank == 0 else "ba":
        dictionary.add_symbol(symbol)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    check_vocabularies(task, ModelGroups.create(CodistillConfig(models=2)))


def test_dictionaries_are_compared_by_their_content() -> None:
    """As many symbols, in another order."""
    with pytest.raises(RankError, match="the target dictionary of the models must be the same"):
        run_ranks(2, _vocabulary)


def test_a_model_of_another_kind_is_named_at_the_first_update() -> None:
    target = torch.zeros(2, 3)
    logits = torch.zeros(2, 3, 7)
    assert _logits((logits, None), target) is logits
    for output in ((torch.zeros(2, 3),), (torch.zeros(2, 4, 7),), {"logits": logits}, ()):
        with pytest.raises(Mistake, match=r"needs a model that returns first .* of shape \[2, 3, 'vocabulary'\]"):
            _logits(output, target)
