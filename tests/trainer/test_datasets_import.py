"""Importing archives and folders: layouts, modes and sizes, order, damage, attacks, names."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.datasets import archive, cache, decode, layout
from trainer.datasets.catalogue import (
    Dataset,
    DatasetError,
    UnknownDataset,
    get_dataset,
    list_datasets,
    open_split,
    remove_dataset,
    samples_path,
)
from trainer.datasets.facts import KNOWN
from trainer.datasets.importing import import_images
from trainer.events import Progress

Files = Mapping[str, bytes]


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "L", kind: str = "PNG") -> bytes:
    """One colour; ``value`` tells images apart."""
    colour: int | tuple[int, ...] = value if mode == "L" else (value, 255 - value, 7)
    return encode(Image.new(mode, size, colour), kind)


def classes(*names: str, count: int = 5, prefix: str = "", **options: object) -> dict[str, bytes]:
    """``count`` images in each class folder, all different."""
    return {
        f"{prefix}{name}/{i}.png": picture(10 * c + i, **options)  # type: ignore[arg-type]
        for c, name in enumerate(names)
        for i in range(count)
    }


def make_zip(path: Path, files: Files, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, data in files.items():
            target.writestr(name, data)
    return path


def make_tar(path: Path, files: Files, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as target:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return path


def make_folder(path: Path, files: Files) -> Path:
    for name, data in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


class Importer:
    """Imports into a home of its own and looks at what stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.reports: list[Progress] = []

    def source(self, source: Path, name: str = "mine", size: int = 64) -> Dataset:
        import_images(self.home, name, source, self.reports.append, size=size)
        return get_dataset(self.home, name)

    def __call__(self, files: Files, name: str = "mine", size: int = 64) -> Dataset:
        return self.source(make_zip(self.folder / "images.zip", files), name, size)

    def refuses(self, source: Path | Files) -> DatasetError:
        """The error, after checking that nothing stayed behind."""
        if not isinstance(source, Path):
            source = make_zip(self.folder / "images.zip", source)
        with pytest.raises(DatasetError) as caught:
            self.source(source)
        left = [path for path in self.home.rglob("*") if path.is_file() and path.parent.name != ".locks"]
        assert left == []
        error = caught.value
        assert error.message.endswith(".")
        assert error.advice.endswith(".")
        return error

    def pixels(self, split: str = "train", name: str = "mine") -> np.ndarray:
        return np.asarray(open_split(self.home, name, split).images)

    def labels(self, split: str = "train", name: str = "mine") -> list[int]:
        return [int(label) for label in open_split(self.home, name, split).labels]


@pytest.fixture
def importer(tmp_path: Path) -> Importer:
    return Importer(tmp_path)


SPLIT = {**classes("cat", "dog", count=3, prefix="train/"), **classes("cat", "dog", count=2, prefix="test/")}


# Layouts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapping", ["", "foo/", "a/b/c/", "./", "/abs/"])
def test_keeps_a_given_split_below_any_wrapping_folders(importer: Importer, wrapping: str) -> None:
    dataset = importer({f"{wrapping}{name}": data for name, data in SPLIT.items()})
    assert (dataset.num_train, dataset.num_test) == (6, 4)
    assert dataset.class_names == ["cat", "dog"]
    assert (dataset.train_counts, dataset.test_counts) == ([3, 3], [2, 2])
    assert dataset.image_shape == (1, 8, 8)
    assert importer.labels() == [0, 0, 0, 1, 1, 1]
    assert importer.pixels()[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]


@pytest.mark.parametrize("prefix", ["", "wrap/", "train/", "wrap/Train/"])
def test_holds_out_a_fifth_of_each_class_where_there_is_no_test(importer: Importer, prefix: str) -> None:
    dataset = importer(classes("a", "b", "c", count=10, prefix=prefix))
    assert (dataset.train_counts, dataset.test_counts) == ([8, 8, 8], [2, 2, 2])
    values = [importer.pixels(split)[:, 0, 0, 0].tolist() for split in ("train", "test")]
    assert sorted(values[0] + values[1]) == list(range(30))
    assert values[0] == sorted(values[0])


def test_a_class_may_be_called_train(importer: Importer) -> None:
    assert importer(classes("car", "plane", "train")).class_names == ["car", "plane", "train"]


def test_deeper_folders_belong_to_their_class(importer: Importer) -> None:
    files = {f"train/{c}/images/{i}.png": picture(i) for c in ("n1", "n2") for i in range(3)}
    assert importer({**files, "test/n1/x.png": picture(), "test/n2/y.png": picture()}).train_counts == [3, 3]


def test_passes_over_what_is_no_image(importer: Importer) -> None:
    rubbish = {
        "__MACOSX/train/cat/._0.png": b"x",
        "train/.DS_Store": b"x",
        "train/cat/Thumbs.db": b"x",
        ".git/a/b.png": b"x",
        "README.txt": b"x",
        "train/cat/notes.csv": b"x",
        "empty/": b"",
        "cover.png": picture(),
    }
    dataset = importer({**SPLIT, **rubbish})
    assert (dataset.num_train, dataset.num_test, dataset.num_unreadable, dataset.num_ignored) == (6, 4, 0, 1)


def test_natural_order_of_files_and_classes(importer: Importer) -> None:
    files = {f"{c}/img{i}.png": picture(i) for c in (10, 9, 1) for i in (100, 20, 3, 1, 11)}
    dataset = importer(files)
    assert dataset.class_names == ["1", "9", "10"]
    assert importer.pixels()[:4, 0, 0, 0].tolist() == sorted(importer.pixels()[:4, 0, 0, 0].tolist())


def test_natural_key_is_a_total_order_of_any_text() -> None:
    names = ["a10", "a2", "A2", "a02", "", "1", "a", "²", "٣", "9" * 5000, "a1b2"]
    assert sorted(names, key=layout.natural_key)[:3] == ["", "1", "9" * 5000]
    assert sorted(["b10", "b9"], key=layout.natural_key) == ["b9", "b10"]


def test_the_same_files_give_the_same_images_however_packed(importer: Importer, tmp_path: Path) -> None:
    backwards = dict(reversed(SPLIT.items()))
    sources = [
        make_zip(tmp_path / "a.zip", SPLIT),
        make_zip(tmp_path / "b.zip", backwards, zipfile.ZIP_DEFLATED),
        make_tar(tmp_path / "a.tar", backwards),
        make_tar(tmp_path / "a.tar.gz", {f"wrapped/{k}": v for k, v in SPLIT.items()}, "w:gz"),
        make_folder(tmp_path / "folder", SPLIT),
    ]
    made = [importer.source(source, f"set-{i}") for i, source in enumerate(sources)]
    assert len({(dataset.train_fingerprint, dataset.test_fingerprint) for dataset in made}) == 1
    assert made[0].train_fingerprint != made[0].test_fingerprint


def test_fingerprints_see_pixels_labels_order_and_shape(importer: Importer) -> None:
    base = importer(SPLIT, "base")
    changed = importer({**SPLIT, "train/cat/0.png": picture(200)}, "changed")
    swapped = importer(
        {**SPLIT, "train/cat/0.png": SPLIT["train/cat/1.png"], "train/cat/1.png": SPLIT["train/cat/0.png"]}, "swapped"
    )
    moved = {**SPLIT, "train/cat/9.png": SPLIT["train/dog/0.png"]}
    del moved["train/dog/0.png"]
    relabelled = importer(moved, "relabelled")
    assert len({d.train_fingerprint for d in (base, changed, swapped, relabelled)}) == 4
    assert len({d.test_fingerprint for d in (base, changed, swapped, relabelled)}) == 1


def test_a_cache_is_complete_and_says_what_it_is(importer: Importer) -> None:
    dataset = importer(classes(*[f"c{i}" for i in range(12)], mode="RGB"))
    folder = importer.home / "datasets" / "mine"
    assert sorted(path.name for path in folder.iterdir()) == [
        "meta.json",
        "samples.png",
        "test-images.npy",
        "test-labels.npy",
        "train-images.npy",
        "train-labels.npy",
    ]
    assert (dataset.kind, dataset.status, dataset.title, dataset.source) == ("imported", "ready", "mine", "images.zip")
    pixels = importer.pixels() / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, pixels.std(axis=(0, 2, 3)), rtol=1e-9, atol=1e-12)
    with Image.open(samples_path(importer.home, "mine")) as sheet:
        assert (sheet.size, sheet.mode) == ((320, 128), "RGB")
        assert sheet.getpixel((32 + 16, 16)) == tuple(importer.pixels()[4, :, 0, 0])
    split = open_split(importer.home, "mine", "train")
    assert isinstance(split.images, np.memmap)
    assert not split.images.flags.writeable
    assert split.labels.dtype == np.uint8


def test_many_classes_have_wider_labels(importer: Importer) -> None:
    importer(classes(*[f"c{i}" for i in range(257)], count=2, size=(1, 1)))
    assert open_split(importer.home, "mine", "test").labels.dtype == np.uint16
    assert importer.labels("test") == list(range(257))


def test_progress_counts_up_to_its_total(importer: Importer) -> None:
    importer(SPLIT)
    for what, unit in (("import", "bytes"), ("cache", "images")):
        reports = [report for report in importer.reports if report.what == what]
        assert [report.done for report in reports] == sorted(report.done for report in reports)
        assert reports[0].done < reports[0].total
        assert reports[-1].done == reports[-1].total > 0
        assert {report.unit for report in reports} == {unit}


def test_names_of_macos_and_windows_zips(importer: Importer, tmp_path: Path) -> None:
    source = tmp_path / "names.zip"
    with zipfile.ZipFile(source, "w") as target:
        for i, name in enumerate(["scho\u0308n", "sch\u00f6n", "z"] * 2):  # decomposed and composed are one class
            info = zipfile.ZipInfo("placeholder")
            info.filename = f"top\\{name}\\{i}.png"
            target.writestr(info, picture(i))
    assert importer.source(source).class_names == ["sch\u00f6n", "z"]
    assert importer.source(source).num_train == 4


# Sizes and modes -----------------------------------------------------------------------------------------------------


def test_one_small_size_is_kept(importer: Importer) -> None:
    assert importer(classes("a", "b", size=(64, 20))).image_shape == (1, 20, 64)


@pytest.mark.parametrize(("size", "wanted"), [((65, 65), 64), ((100, 80), 32)])
def test_one_large_size_is_resized(importer: Importer, size: tuple[int, int], wanted: int) -> None:
    assert importer(classes("a", "b", size=size), size=wanted).image_shape == (1, wanted, wanted)


def test_mixed_sizes_are_resized_and_cropped_in_the_middle(importer: Importer) -> None:
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 255  # the middle third is what a square crop keeps
    tall = np.ascontiguousarray(wide.T)
    files = {**classes("a", "b"), "a/7.png": encode(Image.fromarray(wide)), "a/8.png": encode(Image.fromarray(tall))}
    dataset = importer(files, size=16)
    assert dataset.image_shape == (1, 16, 16)
    every = np.concatenate([importer.pixels(), importer.pixels("test")])
    bright = every[every.mean(axis=(1, 2, 3)) > 200]
    assert len(bright) == 2
    assert bright[:, :, 2:-2, 2:-2].min() == 255


def test_shrinking_averages_instead_of_picking(importer: Importer) -> None:
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    importer({f"{c}/{i}.png": encode(Image.fromarray(stripes)) for c in "ab" for i in range(3)}, size=32)
    inner = importer.pixels()[:, :, 2:-2, 2:-2].astype(int)
    assert abs(inner - 128).max() <= 3


def test_grey_only_if_all_are_grey(importer: Importer) -> None:
    grey = importer(classes("a", "b"), "grey")
    mixed = importer({**classes("a", "b"), "b/9.png": picture(9, mode="RGB")}, "mixed")
    assert (grey.image_shape, mixed.image_shape) == ((1, 8, 8), (3, 8, 8))
    first = open_split(importer.home, "mixed", "train").images[1]
    assert (first[0] == first[1]).all()


def decoded(data: bytes, *, grey: bool = False, size: tuple[int, int] = (8, 8)) -> list[int]:
    """The value of each channel at the top left."""
    with decode.quiet_images():
        pixels = decode.decode(io.BytesIO(data), grey=grey, height=size[1], width=size[0])
    return [int(value) for value in pixels[:, 0, 0]]


def header(data: bytes) -> decode.Header:
    with decode.quiet_images():
        return decode.read_header(io.BytesIO(data))


def sixteen_bit(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, np.uint16))


def test_sixteen_bit_grey_is_scaled() -> None:
    for value in (0, 1, 128, 254, 255):
        assert decoded(encode(sixteen_bit(value * 257)), grey=True) == [value]
        assert decoded(encode(sixteen_bit(value * 257), "TIFF")) == [value] * 3
    assert header(encode(sixteen_bit(9))).grey


def test_transparency_lies_on_white() -> None:
    assert decoded(encode(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))) == [255, 255, 255]
    assert decoded(encode(Image.new("RGBA", (8, 8), (0, 0, 0, 128)))) == [127, 127, 127]
    assert decoded(encode(Image.new("LA", (8, 8), (0, 0))), grey=True) == [255]
    assert header(encode(Image.new("LA", (8, 8)))).grey
    keyed = encode(Image.new("RGB", (8, 8), (1, 2, 3)), transparency=(1, 2, 3))
    assert decoded(keyed) == [255, 255, 255]


def test_palettes() -> None:
    colours = Image.new("P", (8, 8), 1)
    colours.putpalette([0, 0, 0, 200, 10, 30])
    assert decoded(encode(colours)) == [200, 10, 30]
    assert decoded(encode(colours, "GIF")) == [200, 10, 30]
    assert decoded(encode(colours, transparency=1)) == [255, 255, 255]
    assert not header(encode(colours)).grey
    greys = Image.new("P", (8, 8), 1)
    greys.putpalette([0, 0, 0, 90, 90, 90])
    assert header(encode(greys)).grey
    assert decoded(encode(greys), grey=True) == [90]


def test_other_modes_and_formats() -> None:
    assert decoded(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)) == pytest.approx(
        [255, 0, 0], abs=3
    )
    assert decoded(encode(Image.new("1", (8, 8), 1)), grey=True) == [255]
    assert header(encode(Image.new("1", (8, 8)))).grey
    for kind in ("BMP", "PPM", "TIFF", "WEBP"):
        exact = {"lossless": True} if kind == "WEBP" else {}
        assert decoded(encode(Image.new("RGB", (8, 8), (9, 8, 7)), kind, **exact)) == [9, 8, 7]


def test_the_first_frame_of_a_moving_image() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert decoded(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_turns_the_image(kind: str) -> None:
    image = Image.new("L", (16, 8))
    image.paste(255, (0, 0, 8, 8))  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees clockwise: bright on top
    data = encode(image, kind, exif=exif)
    assert header(data) == decode.Header(8, 16, grey=True)
    with decode.quiet_images():
        pixels = decode.decode(io.BytesIO(data), grey=True, height=16, width=8)
    assert pixels[0, :7].min() > 240
    assert pixels[0, 9:].max() < 15


@pytest.mark.parametrize("image", [Image.new("F", (8, 8), 0.5), Image.new("I", (8, 8), 70_000)], ids=["F", "I"])
def test_values_of_unknown_range_are_not_guessed(image: Image.Image) -> None:
    with pytest.raises(decode.Unreadable):
        decoded(encode(image, "TIFF"))


# Unreadable files ----------------------------------------------------------------------------------------------------


def test_unreadable_files_are_named_and_skipped(importer: Importer) -> None:
    whole = picture(5, size=(8, 8), mode="RGB")
    broken = {
        "a/bad.png": b"no image",
        "a/cut.png": whole[: len(whole) // 2],
        "b/empty.jpg": b"",
        "b/x.png": b"\0" * 99,
    }
    dataset = importer({**classes("a", "b"), **broken})
    assert dataset.num_unreadable == 4
    assert dataset.unreadable == sorted(broken)
    assert (dataset.num_train, dataset.num_test) == (8, 2)
    assert dataset.image_shape == (1, 8, 8)  # the cut image alone was coloured, so it decides nothing


def test_an_unreadable_file_that_alone_had_another_size_decides_nothing(importer: Importer) -> None:
    large = encode(Image.effect_noise((90, 90), 50))
    dataset = importer({**classes("a", "b"), "b/large.png": large[: len(large) // 2]})
    assert (dataset.image_shape, dataset.num_unreadable) == ((1, 8, 8), 1)


def test_only_a_hundred_names_are_kept(importer: Importer) -> None:
    dataset = importer({**classes("a", "b"), **{f"a/bad{i}.png": b"" for i in range(120)}})
    assert (dataset.num_unreadable, len(dataset.unreadable)) == (120, 100)


def test_a_damaged_zip_member_is_one_unreadable_file(importer: Importer, tmp_path: Path) -> None:
    victim = picture(77)
    source = make_zip(tmp_path / "a.zip", {**classes("a", "b"), "a/victim.png": victim})
    data = source.read_bytes()
    source.write_bytes(data.replace(victim, victim[:-20] + b"\0" * 20))
    assert importer.source(source).unreadable == ["a/victim.png"]


def test_a_pixel_bomb_is_unreadable(importer: Importer) -> None:
    bomb = encode(Image.new("1", (10_000, 10_000)))
    assert importer({**classes("a", "b"), "a/bomb.png": bomb}).unreadable == ["a/bomb.png"]


# Refusals ------------------------------------------------------------------------------------------------------------


def renamed(count: int) -> dict[str, bytes]:
    data = picture(size=(1, 1))
    return {f"c{i}/{j}.png": data for i in range(count) for j in range(2)}


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "contains no images"),
        ({"a/readme.txt": b"x", "b/.hidden.png": b"x"}, "contains no images"),
        ({"1.png": picture(), "2.png": picture()}, "There are 0 class folders"),
        (classes("only"), "There is only 1 class folder"),
        ({"a/1.png": b"", "b/1.png": b""}, "None of the 2 image files can be read"),
        ({**classes("a", "b"), "c/1.png": b"", "c/2.png": b""}, "Class c has fewer than two images"),
        ({**classes("a", "b"), "c/1.png": picture()}, "Class c has fewer than two images"),
        ({**SPLIT, "train/cow/1.png": picture()}, "Class cow has no test image"),
        ({**SPLIT, "test/cow/1.png": picture()}, "Class cow has no training image"),
        ({**classes("a", "b", prefix="train/"), **classes("a", "b", prefix="val/")}, "no test/"),
        ({**SPLIT, "../../evil/1.png": picture()}, "points outside it: ../../evil/1.png"),
        ({**classes("a", "b"), f"{'x' * 101}/1.png": picture()}, "101 characters"),
        ({**classes("a", "b"), "c\x1b[31m/1.png": picture()}, "can't be shown"),
        ({**classes("a", "b"), "c\u202egnp/1.png": picture()}, "can't be shown"),
    ],
)
def test_refuses_with_a_sentence(importer: Importer, files: Files, sentence: str) -> None:
    assert sentence in importer.refuses(files).message


def test_refuses_more_than_a_thousand_classes(importer: Importer) -> None:
    assert "1,001 class folders; at most 1,000" in importer.refuses(renamed(1001)).message


def no_archive(path: Path) -> None:
    path.write_bytes(picture(size=(400, 300)))


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def gzipped_text(path: Path) -> None:
    path.write_bytes(gzip.compress(b"just text, no tar\n" * 1000))


def cut_zip(path: Path) -> None:
    data = make_zip(path, SPLIT).read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def noise(name: str) -> dict[str, bytes]:
    return {f"{name}/{i}.png": encode(Image.effect_noise((64, 64), 90)) for i in range(8)}


def cut_tar(path: Path) -> None:
    data = make_tar(path, {**noise("a"), **noise("b")}).read_bytes()
    path.write_bytes(data[: len(data) // 2 + 100])


def cut_tar_gz(path: Path) -> None:
    data = make_tar(path, {**noise("a"), **noise("b")}, "w:gz").read_bytes()
    path.write_bytes(data[: len(data) // 2])


def scrambled_tar_gz(path: Path) -> None:
    data = make_tar(path, {**noise("a"), **noise("b")}, "w:gz").read_bytes()
    path.write_bytes(data[:2000] + bytes(2000) + data[4000:])


def encrypted_zip(path: Path) -> None:
    data = bytearray(make_zip(path, SPLIT).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + offset] |= 1
    path.write_bytes(data)


def unknown_method(path: Path) -> None:
    data = bytearray(make_zip(path, SPLIT).read_bytes())
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        data[at + 10] = 98  # PPMd
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (no_archive, "is not a zip, tar or tar.gz archive"),
        (empty_file, "is not a zip, tar or tar.gz archive"),
        (gzipped_text, "is not a zip, tar or tar.gz archive"),
        (cut_zip, "is damaged or incomplete"),
        (cut_tar, "is damaged or incomplete"),
        (cut_tar_gz, "is damaged or incomplete"),
        (scrambled_tar_gz, "is damaged or incomplete"),
        (encrypted_zip, "is encrypted"),
        (unknown_method, "a compression that can't be read"),
    ],
)
def test_refuses_archives_that_are_none(
    importer: Importer, tmp_path: Path, make: Callable[[Path], None], sentence: str
) -> None:
    make(tmp_path / "upload")
    assert sentence in importer.refuses(tmp_path / "upload").message


def test_refuses_what_is_not_there(importer: Importer, tmp_path: Path) -> None:
    assert importer.refuses(tmp_path / "gone.zip").message == "There is no file or folder gone.zip."


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(archive, "_RATIO_MATTERS_BYTES", 1 << 20)


BOMB = {"a/bomb.png": bytes(3 << 20)}
MANY = {f"a/bomb{i}.png": bytes(900_000) for i in range(4)}


def pax_bomb(path: Path) -> Path:
    """A tar whose header for the next file is itself huge."""
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as target:
        info = tarfile.TarInfo("a/1.png")
        info.pax_headers = {"comment": "x" * (3 << 20)}
        target.addfile(info, io.BytesIO())
    return path


@pytest.mark.usefixtures("small_limits")
def test_refuses_byte_bombs(importer: Importer, tmp_path: Path) -> None:
    for files, sentence in ((BOMB, "contains a file of 3 MB"), (MANY, "unpacks to more than")):
        both = {**files, **SPLIT}
        assert sentence in importer.refuses(make_zip(tmp_path / "b.zip", both, zipfile.ZIP_DEFLATED)).message
        assert sentence in importer.refuses(make_tar(tmp_path / "b.tar.gz", both, "w:gz")).message
    assert "contains a file of" in importer.refuses(pax_bomb(tmp_path / "p.tar.gz")).message


def test_links_and_devices_are_passed_over(importer: Importer, tmp_path: Path) -> None:
    source = make_tar(tmp_path / "links.tar", SPLIT)
    with tarfile.open(source, "a") as target:
        for kind, name in (
            (tarfile.SYMTYPE, "s"),
            (tarfile.LNKTYPE, "h"),
            (tarfile.CHRTYPE, "d"),
            (tarfile.FIFOTYPE, "f"),
        ):
            info = tarfile.TarInfo(f"train/cat/{name}.png")
            info.type, info.linkname = kind, "train/cat/0.png"
            target.addfile(info)
    assert importer.source(source, "tar").num_train == 6
    zipped = make_zip(tmp_path / "links.zip", SPLIT)
    with zipfile.ZipFile(zipped, "a") as target_zip:
        link = zipfile.ZipInfo("train/cat/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        target_zip.writestr(link, "/etc/passwd")
    assert importer.source(zipped, "zip").num_unreadable == 0
    folder = make_folder(tmp_path / "folder", SPLIT)
    (folder / "train/cat/link.png").symlink_to(folder / "train/cat/0.png")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "train/cat/pipe.png")
    assert importer.source(folder, "folder").num_train == 6


def test_a_full_disk_is_said_before_it_is_full(importer: Importer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    assert "The disk has 0 MB left" in importer.refuses(SPLIT).message


@pytest.mark.parametrize("size", [7, 513])
def test_refuses_sizes_out_of_bounds(importer: Importer, size: int) -> None:
    with pytest.raises(DatasetError, match="8 to 512 pixels"):
        importer(SPLIT, size=size)


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Upper", "-a", "a/b", "..", "a" * 65, "a b", "mnist", "digits"])
def test_refuses_names(importer: Importer, name: str) -> None:
    with pytest.raises(DatasetError):
        importer(SPLIT, name)
    assert not importer.home.exists()


def test_a_name_stands_for_the_same_images_for_ever(importer: Importer) -> None:
    first = importer(SPLIT)
    others = {**SPLIT, "train/cat/0.png": picture(99)}
    with pytest.raises(DatasetError, match="is already used for other images"):
        importer(others)
    assert importer(SPLIT) == first
    remove_dataset(importer.home, "mine")
    assert [dataset.name for dataset in list_datasets(importer.home)] == [*KNOWN]
    with pytest.raises(UnknownDataset):
        get_dataset(importer.home, "mine")
    with pytest.raises(FileNotFoundError):
        open_split(importer.home, "mine", "train")
    with pytest.raises(DatasetError, match="is already used for other images"):
        importer(others)
    again = importer(SPLIT)
    assert (again.train_fingerprint, again.status) == (first.train_fingerprint, "ready")


def test_remove_refuses_known_and_unknown_names(importer: Importer) -> None:
    with pytest.raises(DatasetError, match="is built into Runoff"):
        remove_dataset(importer.home, "mnist")
    with pytest.raises(UnknownDataset, match="no data set named none"):
        remove_dataset(importer.home, "none")


def test_leftovers_of_a_killed_maker_are_swept_up(importer: Importer) -> None:
    leftover = importer.home / "datasets" / ".making" / "other"
    make_folder(leftover, {"rows": b"x"})
    importer(SPLIT)
    assert not leftover.exists()


def test_an_empty_folder_is_no_data_set_and_a_newer_one_is_named(importer: Importer) -> None:
    importer(SPLIT)
    folder = importer.home / "datasets"
    (folder / "half").mkdir()
    make_folder(folder / "foreign", {"meta.json": json.dumps({"schema": 99}).encode()})
    (folder / "file").write_text("x")
    shown = list_datasets(importer.home)[len(KNOWN) :]
    assert [(dataset.name, dataset.status) for dataset in shown] == [("foreign", "damaged"), ("mine", "ready")]
    assert "newer version of Runoff (schema 99)" in shown[0].problem


# Splitting by chance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[2, 2], [1797], [5, 5, 5], [3, 100, 7, 2], [178, 182, 177, 183, 181, 182, 181]])
def test_stratified_test_takes_a_fifth_of_each_class(counts: Iterable[int]) -> None:
    counts = [*counts]
    labels = np.repeat(np.arange(len(counts)), counts)
    test = cache.stratified_test(labels, len(counts))
    held_out = np.bincount(labels[test], minlength=len(counts))
    assert (abs(held_out - np.asarray(counts) / 5) < 1).all()
    assert (held_out >= 1).all()
    assert (cache.stratified_test(labels, len(counts)) == test).all()
    assert (cache.stratified_test(labels, len(counts), seed=1) != test).any()
