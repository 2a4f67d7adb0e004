"""What --codistill-dropout changes in a model, and what it leaves alone."""

from argparse import Namespace
from types import SimpleNamespace

import pytest
from fairseq.data import Dictionary
from fairseq.models.lstm import LSTMEncoder
from fairseq.models.transformer import TransformerModel, base_architecture
from torch import nn

from codistill_ext.errors import Mistake
from codistill_ext.fairseq_plugin.dropout import dropouts_of, set_dropout


@pytest.fixture
def task() -> SimpleNamespace:
    return SimpleNamespace(source_dictionary=Dictionary(), target_dictionary=Dictionary())


def test_attention_and_activations_keep_their_own(task: SimpleNamespace) -> None:
    args = Namespace(dropout=0.3, attention_dropout=0.1, activation_dropout=0.2, encoder_layers=2, decoder_layers=3)
    args.encoder_embed_dim = args.encoder_ffn_embed_dim = 8
    base_architecture(args)
    model = TransformerModel.build_model(args, task)
    shares = sorted(module.p for module in model.modules() if hasattr(module, "module_name"))
    assert len(dropouts_of(model)) == shares.count(0.3) == 2 + 2 + 3
    set_dropout(model, 0.05)
    changed = sorted(module.p for module in model.modules() if hasattr(module, "module_name"))
    assert changed == sorted([0.05 if share == 0.3 else share for share in shares])
    assert changed.count(0.1) == 2 + 2 * 3 and changed.count(0.2) == 2 + 3


def test_an_lstm_has_two_a_side_and_other_models_are_refused() -> None:
    encoder = LSTMEncoder(Dictionary(), embed_dim=4, hidden_size=4, dropout_in=0.3, dropout_out=0.3)
    assert [module.p for module in dropouts_of(encoder)] == [0.3, 0.3]
    with pytest.raises(Mistake, match="of which Linear has none"):
        dropouts_of(nn.Linear(1, 1))
