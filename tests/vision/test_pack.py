"""Packing a tree: the same pictures by the same keys, whole or not at all, and the same runs."""

import json
import pickle
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from tests.ranks import run_ranks
from tests.states import assert_same
from tests.vision.small import final_state, run, run_rank, write_folders
from vision import pack as pack_module
from vision import presets
from vision.datasets import load_data
from vision.options import build_parser, parse_options
from vision.pack import main, pack
from vision.packed import PackedFolder

OPTIONS = ["--model", "resnet8_stride2", "--train-crop-size", "32", "--val-resize-size", "36", "--val-crop-size", "32"]
OPTIONS += ["--device", "cpu", "-b", "4", "-j", "0", "--epochs", "2", "--lr", "0.05", "--print-freq", "1"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    write_folders(root)
    for path in root.glob("*/cat/*.png"):  # an ImageNet tree has grey pictures and JPEGs too
        if path.stem in "02":
            with Image.open(path) as picture:
                picture.convert("L").save(path.with_suffix(".jpeg"))
            path.unlink()
    return root


@pytest.fixture(scope="module")
def packed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In several files: pictures of 4 kB, and 2 MB stand for a gigabyte."""
    dest = tmp_path_factory.mktemp("packed") / "pack"
    _pack_small(tree, dest)
    return dest


def _pack_small(tree: Path, dest: Path, **options: int) -> None:
    """A few pictures a file, as if a picture had a third of a megabyte."""
    with mock.patch.object(pack_module.os.path, "getsize", return_value=350_000):
        pack(tree, dest, **{"resize_shorter": None, "shard_mb": 1, "workers": 1} | options)


def _args(path: Path) -> list[str]:
    return [*OPTIONS, "--data-path", str(path)]


def test_the_same_keys_are_the_same_tensors(tree: Path, packed: Path) -> None:
    assert len(list(packed.glob("train/0*.arrow"))) == 4, "in several files"
    of_tree, of_pack = (load_data(parse_options(build_parser(), _args(path)).args) for path in (tree, packed))
    assert isinstance(of_pack.valid, PackedFolder)
    assert of_pack.train.labels == of_tree.train.labels and of_pack.num_classes == 2
    for index in range(12):
        for seed in (3, 4):
            first, second = of_tree.train[(index, seed)], of_pack.train[(index, seed)]
            assert torch.equal(first[0], second[0]) and first[1] == second[1]
    for index in range(8):
        assert torch.equal(of_tree.valid[index][0], of_pack.valid[index][0])


def test_workers_read_for_themselves(packed: Path) -> None:
    data = load_data(parse_options(build_parser(), _args(packed)).args)
    keys = [(index, 5) for index in range(12)]
    alone = [data.train[key][0] for key in keys]  # so the files are open here before the workers are forked
    loader = DataLoader(data.train, sampler=keys, batch_size=4, num_workers=2, generator=torch.Generator())
    assert torch.equal(torch.cat([images for images, _ in loader]), torch.stack(alone))
    again = pickle.loads(pickle.dumps(data.train))
    assert torch.equal(again[keys[3]][0], alone[3])


def test_names_and_bytes_are_those_of_the_files(tree: Path, packed: Path) -> None:
    folder = PackedFolder(packed, "train", presets.imagenet_train(24))
    for index, (path, label) in enumerate(ImageFolder(str(tree / "train")).samples):
        name, stored, image = folder.row(index)
        assert (tree / "train" / name, stored) == (Path(path), label)
        assert bytes(image) == Path(path).read_bytes()


@pytest.mark.slow
def test_runs_have_the_same_bits_and_resume_from_one_on_the_other(tree: Path, packed: Path, tmp_path: Path) -> None:
    two = ["--codistill-models", "2", "--codistill-exchange", "checkpoints", "--codistill-data", "disjoint"]
    two += ["--codistill-period", "2", "--codistill-lag", "0", "--train-fraction", "2/3"]
    whole = [*_args(tree), *two, "--output-dir", str(tmp_path / "whole")]
    stopped = ["--output-dir", str(tmp_path / "stopped"), "--resume", "auto"]
    begun = [*_args(tree), *two, *stopped, "--max-updates", "4"]
    run_ranks(2, run_rank, whole, begun, [*_args(packed), *two, *stopped])
    for model in (0, 1):
        assert_same(final_state(tmp_path / "whole", model), final_state(tmp_path / "stopped", model))


def test_a_killed_run_is_continued_and_leaves_nothing(
    tree: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    original = pack_module.write_shard

    def write_shard(shard: pack_module.Shard) -> dict[str, object]:
        if len(written) == 2:
            raise KeyboardInterrupt
        if not shard.note.exists():
            written.append(f"{shard.path.parent.name}/{shard.path.name}")
        return original(shard)

    monkeypatch.setattr(pack_module, "write_shard", write_shard)
    with pytest.raises(KeyboardInterrupt):
        _pack_small(tree, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()
    monkeypatch.setattr(pack_module, "write_shard", original)
    half = tmp_path / ".pack.packing/train/00002.arrow"
    half.write_bytes(b"half")
    before = (tmp_path / ".pack.packing/train/00000.arrow").stat().st_mtime_ns
    _pack_small(tree, tmp_path / "pack")
    assert (tmp_path / "pack/train/00000.arrow").stat().st_mtime_ns == before, "written once"
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]
    same = {path.relative_to(packed): path.read_bytes() for path in packed.rglob("*.*")}
    assert same == {path.relative_to(tmp_path / "pack"): path.read_bytes() for path in (tmp_path / "pack").rglob("*.*")}


def test_leftovers_of_another_plan_are_not_used(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pack_module, "_write_index", mock.Mock(side_effect=KeyboardInterrupt))
        _pack_small(tree, tmp_path / "pack")
    _pack_small(tree, tmp_path / "pack", resize_shorter=20)
    folder = PackedFolder(tmp_path / "pack", "train", lambda picture: picture.size)
    assert {folder[index][0] for index in range(12)} == {(20, 20)}


@pytest.mark.slow
def test_the_command_packs_and_checks(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = tmp_path / "pack"
    main([str(tree), str(dest), "-j", "2"])
    main(["--check", str(dest)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[1]
    assert lines[0].startswith(f"{dest}: train 12 pictures in 1 files, val 8 pictures in 1 files, ")
    with pytest.raises(SystemExit) as stop:
        main([str(tree), str(dest)])
    assert stop.value.code == 1
    assert f"vision.pack: {dest} is there already: choose another place" in capsys.readouterr().err


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _drop_manifest(root: Path) -> None:
    (root / "pack.json").unlink()


def _drop_shard(root: Path) -> None:
    (root / "train/00001.arrow").unlink()


def _shorten_shard(root: Path) -> None:
    path = root / "val/00000.arrow"
    path.write_bytes(path.read_bytes()[:-10])


def _other_version(root: Path) -> None:
    manifest = json.loads((root / "pack.json").read_text())
    (root / "pack.json").write_text(json.dumps(manifest | {"version": 7}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_manifest, "is no whole pack"),
        (_drop_shard, "train/00001.arrow is missing: copy the pack again"),
        (_shorten_shard, r"val/00000.arrow has \d+ bytes and should have \d+"),
        (_other_version, "is a pack of version 7, this program reads 1"),
    ],
)
def test_half_a_pack_is_refused(packed: Path, tmp_path: Path, damage: object, message: str) -> None:
    shutil.copytree(packed, tmp_path / "pack")
    damage(tmp_path / "pack")
    with pytest.raises(ValueError, match=message):
        run([*_args(tmp_path / "pack"), "--output-dir", str(tmp_path / "run")])


@pytest.mark.parametrize("name", ["train/00001.arrow", "val/index.arrow"])
def test_the_check_sees_a_changed_bit(
    packed: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(packed, tmp_path / "pack")
    path = tmp_path / "pack" / name
    if name.endswith("index.arrow"):
        shutil.copyfile(tmp_path / "pack/train/index.arrow", path)
    else:
        _flip_a_bit(path)
    with pytest.raises(SystemExit):
        main(["--check", str(tmp_path / "pack")])
    assert f"vision.pack: {path} " in capsys.readouterr().err


def test_what_cannot_be_packed(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(source: Path, *options: str) -> str:
        with pytest.raises(SystemExit):
            main([str(source), str(tmp_path / "pack"), "-j", "1", *options])
        assert not (tmp_path / "pack").exists()
        return capsys.readouterr().err

    assert "must hold train/CLASS/* and val/CLASS/*" in fails(tmp_path / "nowhere")
    assert "--shard-mb must be at least 1, not 0" in fails(tree, "--shard-mb", "0")
    shutil.copytree(tree, tmp_path / "tree")
    (tmp_path / "tree/val/dog/1.png").write_text("not a picture")
    assert "val/dog/1.png is no picture" in fails(tmp_path / "tree")
    shutil.copy(tree / "val/dog/1.png", tmp_path / "tree/val/dog/1.png")
    picture = tmp_path / "tree/val/cat/0.jpeg"  # its header is whole
    picture.write_bytes(picture.read_bytes()[:-200])
    assert "val/cat/0.jpeg is no picture" in fails(tmp_path / "tree")
