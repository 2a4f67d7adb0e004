"""Disjoint data: each model trains on sentences of its own, and resumes with the same bits."""

import re
import shutil
from pathlib import Path

from tests.commands import run, torchrun
from tests.fairseq_plugin.commands import CRITERION, SMALL, same_bits
from tests.fairseq_plugin.conftest import PAIRS

LAST = "checkpoint_last.pt"
DISJOINT = [*CRITERION, "--codistill-models", "2", "--codistill-data", "disjoint", "--codistill-period", "4"]
DISJOINT += ["--codistill-exchange", "checkpoints", "--codistill-lag", "1", "--save-interval-updates", "6"]


def test_no_sentence_is_of_two_models_and_a_resumed_run_has_the_same_bits(data_bin: Path, tmp_path: Path) -> None:
    launch = tmp_path / "launch.py"
    launch.write_text(
        "import os\n"
        "from fairseq_cli import train\n"
        "from codistill_ext.fairseq_plugin import trainer\n"
        "from codistill_ext.tasks import codistill_translation\n"
        "step = trainer.CodistillTrainer.train_step\n"
        "def told(self, samples, raise_oom=False):\n"
        "    ids = ' '.join(map(str, samples[0]['id'].tolist()))\n"
        "    os.write(1, f\"read {os.environ['RANK']} {ids}\\n\".encode())  # at once: the ranks share it\n"
        "    return step(self, samples, raise_oom)\n"
        "trainer.CodistillTrainer.train_step = told\n"
        "train.cli_main()\n"
    )

    def train(directory: str, updates: int) -> str:
        command = [*torchrun(2, str(launch)), str(data_bin), "--user-dir", "codistill_ext", *SMALL, *DISJOINT]
        command += ["--required-batch-size-multiple", "1", "--save-dir", str(tmp_path / directory)]
        return run([*command, "--max-update", str(updates)])

    output = train("whole", 40)
    read: dict[str, list[int]] = {"0": [], "1": []}
    for rank, sentences in re.findall(r"^read (\d) ([\d ]+)$", output, re.MULTILINE):
        read[rank] += map(int, sentences.split())
    first, second = (set(sentences) for sentences in read.values())
    assert not first & second
    assert first | second == set(range(PAIRS["train"])), "both models have made at least one pass"
    assert len(first) == len(second) == PAIRS["train"] // 2
    assert "model 1 (rank 1) trains on 300 of 600 sentences, which no other model sees" in output
    for index in range(2):
        (saved,) = (tmp_path / f"whole/model{index}").glob("checkpoint_*_24.pt")
        (tmp_path / f"parts/model{index}").mkdir(parents=True)
        shutil.copy(saved, tmp_path / f"parts/model{index}" / LAST)
    assert "checkpoint_last.pt (epoch" in train("parts", 40), "it did resume"
    for index in range(2):
        assert same_bits(tmp_path / f"whole/model{index}" / LAST, tmp_path / f"parts/model{index}" / LAST)
