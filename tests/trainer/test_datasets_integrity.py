"""Damaged data sets: what is noticed at once, what at the start of a run, and how they are replaced or removed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer import runtime
from trainer.datasets import cache, catalogue, integrity, worker
from trainer.datasets.errors import DatasetDamaged, DatasetError, UnknownDataset
from trainer.datasets.importing import import_images
from trainer.datasets.meta import Meta, NotMeta, crc_of, read_meta_file
from trainer.run_folder import RunFolder, iter_valid_events

MakeRun = Callable[..., RunFolder]
Harm = Callable[[Path], Any]


@pytest.fixture
def bars(home: Path) -> Path:
    return home / "datasets" / "bars"


def last_event(folder: RunFolder, attempt: int = 1) -> dict[str, Any]:
    assert runtime.execute(folder, attempt, num_threads=1) == 0
    return [event for event, _end in iter_valid_events(folder.events_path)][-1]


def flip(path: Path, offset: int) -> None:
    """Flip one bit in place; ``offset`` counts from the end where it is negative."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def zero_half(path: Path) -> None:
    images = np.lib.format.open_memmap(path, "r+")
    images[: len(images) // 2] = 0
    images.flush()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# The content of the arrays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", cache.SPLITS)
def test_the_files_have_the_fingerprints_of_their_making(home: Path, bars: Path, split: str) -> None:
    meta = read_meta_file(bars / "meta.json")
    paths = (bars / f"{split}-images.npy", bars / f"{split}-labels.npy")
    assert integrity.fingerprint(*paths, meta.counts(split)) == meta.fingerprint(split)


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("train-images.npy", lambda path: flip(path, -1)),
        ("train-images.npy", lambda path: flip(path, 5_000)),
        ("train-images.npy", zero_half),
        ("test-images.npy", lambda path: flip(path, 128)),
        ("train-labels.npy", lambda path: flip(path, -3)),
        ("test-labels.npy", lambda path: flip(path, -1)),
    ],
)
def test_a_run_does_not_train_on_other_pixels(home: Path, bars: Path, make_run: MakeRun, file: str, harm: Harm) -> None:
    harm(bars / file)
    event = last_event(make_run())
    assert (event["type"], event["error"]) == ("failed", "DatasetDamaged")
    assert "The data set bars is damaged: the images or labels in " in event["message"]
    assert event["advice"].startswith("Import the same images again")
    dataset = catalogue.get_dataset(home, "bars")  # known from now on
    assert (dataset.status, dataset.problem, dataset.train_fingerprint) == ("damaged", event["message"], None)
    assert dataset.num_train == 104


def test_a_resumed_run_checks_again(home: Path, bars: Path, make_run: MakeRun) -> None:
    folder = make_run()
    assert last_event(folder)["type"] == "finished"
    zero_half(bars / "train-images.npy")
    assert last_event(folder, attempt=2)["error"] == "DatasetDamaged"


def test_whole_files_are_read_once(home: Path, bars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "_SETTLED_NS", -(10**10))
    reads: list[Path] = []
    compute = integrity.fingerprint

    def noted(images: Path, *others: Any) -> str:
        reads.append(images)
        return compute(images, *others)

    monkeypatch.setattr(integrity, "fingerprint", noted)
    for _time in range(3):
        integrity.verify(home, "bars")
    assert len(reads) == 2
    copy = bars / "copy.npy"
    shutil.copy(bars / "test-images.npy", copy)
    copy.replace(bars / "test-images.npy")  # another inode
    integrity.verify(home, "bars")
    assert [path.name for path in reads[2:]] == ["test-images.npy"]
    integrity.note_path(home, "bars").write_bytes(b"{")
    integrity.verify(home, "bars")
    integrity.note_path(home, "bars").unlink()
    integrity.verify(home, "bars")
    assert len(reads) == 7


def test_a_file_that_changed_just_before_its_check_is_read_again(home: Path) -> None:
    integrity.verify(home, "bars")
    note = integrity.read_note(integrity.note_path(home, "bars"))
    assert note is not None
    meta = catalogue.get_dataset(home, "bars")
    assert note.train.found == note.train.promised == meta.train_fingerprint
    folder = cache.folder_of(home, "bars")
    late = note.train.model_copy(update={"started_ns": max(note.train.images[3:]) + 10**8})
    assert not integrity._still_holds(folder, "train", read_meta_file(folder / "meta.json"), late)


def test_a_note_that_can_not_be_written_is_no_failure(home: Path, make_run: MakeRun) -> None:
    (home / "datasets" / ".checked").write_text("in the way")
    assert last_event(make_run())["type"] == "finished"


# What a quick look sees ----------------------------------------------------------------------------------------------


def change(**members: Any) -> Harm:
    """Change members of meta.json, with a right checksum; None removes one."""

    def harm(path: Path) -> None:
        meta = {**json.loads(path.read_bytes()), **members}
        meta = {key: value for key, value in meta.items() if value is not None or key == "created_at"}
        path.write_text(json.dumps({**meta, "crc": crc_of(meta)}))

    return harm


QUICK: list[tuple[str, Harm, str]] = [
    ("meta.json", lambda path: path.unlink(), "meta.json is missing"),
    ("meta.json", lambda path: path.write_bytes(b""), r"does not write \(JSON\)"),
    ("meta.json", lambda path: path.write_bytes(path.read_bytes()[:200]), r"does not write \(JSON\)"),
    ("meta.json", lambda path: path.write_bytes(b"\xff" * 90), r"does not write \(JSON\)"),
    ("meta.json", lambda path: path.write_text('{"schema": 1}'), r"does not write \(title\)"),
    ("meta.json", lambda path: path.write_text("[1]"), r"does not write \(JSON\)"),
    ("meta.json", change(num_train="many"), r"does not write \(num_train\)"),
    ("meta.json", change(num_train=105), r"does not write \(train_counts\)"),
    ("meta.json", change(image_shape=[1, 16]), r"does not write \(image_shape\)"),
    ("meta.json", change(class_names=7), r"does not write \(class_names\)"),
    ("meta.json", change(mean=[float("nan")]), r"does not write \(mean\)"),
    ("meta.json", change(std=[0.1, 0.2]), r"does not write \(mean\)"),
    ("meta.json", change(test_fingerprint=None), r"does not write \(test_fingerprint\)"),
    ("meta.json", change(schema=2), r"newer version of Runoff \(schema 2\)"),
    ("meta.json", lambda path: path.write_text(path.read_text().replace("class 1", "class l")), r"\(crc\)"),
    ("train-images.npy", lambda path: path.unlink(), "train-images.npy is missing"),
    ("train-images.npy", cut, "train-images.npy is incomplete or too long"),
    ("train-images.npy", lambda path: path.write_bytes(b""), "no NumPy header"),
    ("test-images.npy", lambda path: path.write_bytes(path.read_bytes() + b"x"), "incomplete or too long"),
    ("test-images.npy", lambda path: flip(path, 9), "does not write|no NumPy header"),
    ("test-images.npy", lambda path: np.save(path, np.zeros((40, 1, 16, 16))), "<f8"),
    ("test-labels.npy", cut, "test-labels.npy is incomplete or too long"),
    ("test-labels.npy", lambda path: np.save(path, np.array([{}], object)), r"\|O"),
    ("train-labels.npy", into_folder, "directory"),
]


@pytest.mark.parametrize(("file", "harm", "words"), QUICK, ids=[f"{q[0]}-{i}" for i, q in enumerate(QUICK)])
def test_damage_is_a_sentence(home: Path, bars: Path, make_run: MakeRun, file: str, harm: Harm, words: str) -> None:
    harm(bars / file)
    dataset = catalogue.get_dataset(home, "bars")
    assert dataset.status == "damaged"
    assert dataset in catalogue.list_datasets(home)
    with pytest.raises(DatasetDamaged, match=words) as told:
        integrity.verify(home, "bars")
    assert told.value.message == dataset.problem
    assert "remove the data set" in dataset.advice
    for read in (
        lambda: catalogue.open_split(home, "bars", "train"),
        lambda: catalogue.read_image(home, "bars", "train", 0),
    ):
        with pytest.raises(DatasetDamaged):
            read()
    assert last_event(make_run())["error"] == "DatasetDamaged"
    catalogue.remove_dataset(home, "bars")
    with pytest.raises(UnknownDataset):
        catalogue.get_dataset(home, "bars")
    assert not bars.exists()


@pytest.mark.parametrize("seed", range(4))
def test_no_flipped_bit_goes_unnoticed(home: Path, bars: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    for path in [*sorted(bars.glob("*.npy")), bars / "meta.json"]:
        whole = path.read_bytes()
        for offset in random.integers(0, len(whole), 8):
            data = bytearray(whole)
            data[offset] ^= 1 << int(random.integers(8))
            copy = path.with_name("copy")
            copy.write_bytes(data)
            copy.replace(path)
            is_space = path.suffix == ".json" and read_or_none(path) == json.loads(whole)
            in_header = path.suffix == ".npy" and offset < 128  # spaces that end the header may become tabs
            if not is_space and not in_header:
                with pytest.raises(DatasetDamaged):
                    integrity.verify(home, "bars")
        path.write_bytes(whole)
    integrity.verify(home, "bars")


def read_or_none(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def test_a_meta_without_checksum_is_from_an_older_version(home: Path, bars: Path) -> None:
    meta = json.loads((bars / "meta.json").read_bytes())
    meta.pop("crc")
    (bars / "meta.json").write_text(json.dumps(meta))
    assert catalogue.get_dataset(home, "bars").status == "ready"
    integrity.verify(home, "bars")


def test_an_image_is_read_from_its_place(home: Path) -> None:
    images = catalogue.open_split(home, "bars", "test").images
    assert (catalogue.read_image(home, "bars", "test", 39) == images[39]).all()
    for index in (40, -1):
        with pytest.raises(IndexError):
            catalogue.read_image(home, "bars", "test", index)
    with pytest.raises(FileNotFoundError):
        catalogue.read_image(home, "none", "test", 0)


def test_unreadable_meta_says_no_more_than_its_problem(bars: Path) -> None:
    (bars / "meta.json").write_text('{"schema": 1, "title": "\\ud800"}')
    with pytest.raises(NotMeta):
        read_meta_file(bars / "meta.json")


# Import again, remove ------------------------------------------------------------------------------------------------


def source(folder: Path, shade: int = 0) -> Path:
    for label in (1, 2):
        (folder / str(label)).mkdir(parents=True)
        for number in range(3):
            image = Image.new("L", (8, 8), shade + 50 * label + number)
            image.save(folder / str(label) / f"{number}.png")
    return folder


@pytest.fixture
def mine(tmp_path: Path) -> Callable[..., Meta]:
    """Import the same small images (or others) as the data set ``mine``."""

    def make(shade: int = 0) -> Meta:
        folder = tmp_path / f"source-{shade}"
        if not folder.exists():
            source(folder, shade)
        import_images(tmp_path, "mine", folder, lambda progress: None, size=64)
        return integrity.verify(tmp_path, "mine")

    return make


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("meta.json", lambda path: path.write_bytes(b"{")),
        ("meta.json", lambda path: path.unlink()),
        ("train-images.npy", lambda path: flip(path, -1)),
        ("test-labels.npy", cut),
    ],
)
def test_the_same_images_replace_a_damaged_set(
    tmp_path: Path, mine: Callable[..., Meta], file: str, harm: Harm
) -> None:
    first = mine()
    harm(tmp_path / "datasets" / "mine" / file)
    with pytest.raises(DatasetError, match="already used for other images"):
        mine(shade=9)
    assert mine().fingerprints == first.fingerprints
    assert catalogue.get_dataset(tmp_path, "mine").status == "ready"
    assert not [*(tmp_path / "datasets" / ".making").glob("*")]


def test_a_damaged_set_that_was_removed_keeps_its_name(tmp_path: Path, mine: Callable[..., Meta]) -> None:
    mine()
    (tmp_path / "datasets" / "mine" / "meta.json").write_bytes(b"")
    catalogue.remove_dataset(tmp_path, "mine")
    assert not integrity.note_path(tmp_path, "mine").exists()
    with pytest.raises(DatasetError, match="already used for other images"):
        mine(shade=9)
    mine()


def test_a_damaged_note_of_a_removed_set_does_not_free_its_name(tmp_path: Path, mine: Callable[..., Meta]) -> None:
    mine()
    catalogue.remove_dataset(tmp_path, "mine")
    note = tmp_path / "datasets" / ".removed" / "mine.json"
    for content in (b"", b'{"train_fingerprint": 7}', note.read_bytes()[:40]):
        note.write_bytes(content)
        with pytest.raises(DatasetError, match=r"its note datasets/\.removed/mine\.json is damaged"):
            mine()
    note.unlink()
    mine(shade=9)


def test_what_lies_in_the_way_of_a_data_set_is_not_deleted(tmp_path: Path, mine: Callable[..., Meta]) -> None:
    place = tmp_path / "datasets" / "mine"
    place.mkdir(parents=True)
    (place / "letter.txt").write_text("keep me")
    with pytest.raises(DatasetError, match="is not a data set, and files are in it"):
        mine()
    assert (place / "letter.txt").read_text() == "keep me"
    (place / "letter.txt").unlink()
    mine()  # an empty folder is no obstacle


def test_an_import_that_was_not_written_as_it_was_read_is_no_data_set(
    tmp_path: Path, mine: Callable[..., Meta], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = cache._write_labels

    def lose_a_byte(path: Path, *others: Any) -> None:
        write(path, *others)
        cut(path)

    monkeypatch.setattr(cache, "_write_labels", lose_a_byte)
    with pytest.raises(DatasetError, match="could not be read back"):
        mine()
    with pytest.raises(UnknownDataset):
        catalogue.get_dataset(tmp_path, "mine")


def test_a_damaged_built_in_set_is_prepared_again(tmp_path: Path) -> None:
    for _progress in worker.prepare(tmp_path, "digits", download=False):
        pass
    first = catalogue.get_dataset(tmp_path, "digits")
    cut(tmp_path / "datasets" / "digits" / "train-images.npy")
    damaged = catalogue.get_dataset(tmp_path, "digits")
    assert (damaged.status, damaged.num_train) == ("damaged", 1_437)
    assert damaged.advice == "Prepare it again on the page Data sets."
    for _progress in worker.prepare(tmp_path, "digits", download=False):
        pass
    again = catalogue.get_dataset(tmp_path, "digits")
    assert (again.status, again.train_fingerprint) == ("ready", first.train_fingerprint)
