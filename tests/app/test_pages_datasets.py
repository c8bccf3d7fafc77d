"""The data sets page, imports through its form, and the pictures of a data set."""

from __future__ import annotations

import io
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.routes.pages.datasets import suggested_name
from app.schemas import DatasetWork
from tests.app.page_answers import joined
from trainer.datasets import catalogue, worker
from trainer.datasets.facts import KNOWN

Client = Any


@pytest.fixture(scope="module")
def prepared_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("digits")
    for _progress in worker.prepare(home, "digits", download=False):
        pass
    return home / "datasets"


@pytest.fixture
def digits(home: Path, prepared_digits: Path) -> catalogue.Dataset:
    shutil.copytree(prepared_digits, home / "datasets")
    return catalogue.get_dataset(home, "digits")


def make_zip(broken: int = 0) -> bytes:
    """Two classes of ten 16 x 16 images, and ``broken`` files that are no images."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for label, shade in (("dark", 30), ("light", 200)):
            for number in range(10):
                image = io.BytesIO()
                Image.fromarray(np.full((16, 16), shade + number, np.uint8)).save(image, "PNG")
                archive.writestr(f"{label}/{number}.png", image.getvalue())
        for number in range(broken):
            archive.writestr(f"dark/broken-{number}.png", b"no image")
    return file.getvalue()


def send(site: Client, name: str = "shades", data: bytes | None = None, size: str = "64") -> Any:
    files = {"file": ("shades.zip", make_zip() if data is None else data, "application/zip")}
    return site.post("/datasets", data={"name": name, "size": size}, files=files)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def is_ready(site: Client, name: str) -> bool:
    answer = site.get(f"/api/v1/datasets/{name}", headers={"Accept": "application/json"})
    return answer.status_code == 200 and answer.json()["status"] == "ready" and answer.json()["work"] is None


# Cards ------------------------------------------------------------------------------------------------------------------


def test_sets_that_are_not_here(site: Client) -> None:
    text = site.get("/datasets").text
    assert f"1 to prepare, {len(KNOWN) - 1} not downloaded" in text
    assert 'action="/datasets/mnist/prepare"' in text
    assert "60,000 train, 10,000 test" in text
    assert "28 × 28 grey" in text
    assert "32 × 32 RGB" in text


def test_a_ready_set(site: Client, digits: catalogue.Dataset, add_run: Any) -> None:
    add_run(dataset="digits")
    text = joined(site.get("/datasets").text)
    assert "1 ready" in text
    assert "1,437 train, 360 test" in text
    assert 'width="320" height="128"' in text  # the sheet of samples, unscaled
    assert "training images per class: 0 142, 1 145" in text
    assert 'href="/runs?dataset=digits">1 run</a>' in text
    assert 'href="/runs/new?dataset=digits"' in text


def test_work_on_its_way_and_failed(site: Client, site_app: Any) -> None:
    imports = site_app.state.runoff.imports
    imports._claim(DatasetWork(name="cifar10", what="download", done=68_200_000, total=170_500_000, unit="bytes"))
    imports._claim(
        DatasetWork(name="pets", what="import", error={"message": "The disk is full.", "advice": "Make room."})
    )
    text = site.get("/datasets").text
    assert "Downloading 170.5 MB" in text
    assert "40 %" in text
    assert 'action="/datasets/cifar10/stop"' in text
    assert "The disk is full." in text
    assert "Make room." in text
    assert 'action="/datasets/pets/dismiss"' in text
    assert 'data-live="true"' in text
    assert site.post("/datasets/pets/dismiss").status_code == 303
    assert "The disk is full." not in site.get("/datasets").text
    assert site.post("/datasets/cifar10/stop").status_code == 303
    assert "Stopping." in site.get("/datasets").text


def test_preparing_a_set(site: Client) -> None:
    assert site.post("/datasets/digits/prepare").status_code == 303
    wait_for(lambda: is_ready(site, "digits"))
    again = site.post("/datasets/digits/prepare", headers={"HX-Request": "true", "HX-Target": "div#toasts"})
    assert "Digits is already prepared" in again.text
    assert site.post("/datasets/nothing/prepare").status_code == 404
    assert site.post("/datasets/digits/stop").status_code == 422


# Import -----------------------------------------------------------------------------------------------------------------


def test_an_import_from_file_to_card_and_away_again(site: Client, add_run: Any) -> None:
    answer = send(site, data=make_zip(broken=2))
    assert (answer.status_code, answer.headers["Location"]) == (303, "/datasets")
    wait_for(lambda: is_ready(site, "shades"))
    text = site.get("/datasets").text
    assert "16 train, 4 test" in text
    assert "16 × 16 grey" in text
    assert ">imported<" in text
    assert "2 files could not be read and were skipped." in text
    assert "dark/broken-1.png" in text
    assert "shades.zip" in text
    assert "-shades.zip" not in text
    run = add_run(dataset="shades", status="queued")
    assert site.post("/datasets/delete", data={"name": "shades"}).status_code == 409
    site.post("/runs/selected", data={"action": "cancel", "run": run.id})
    assert site.post("/datasets/delete", data={"name": "shades"}).status_code == 303
    assert 'id="set-shades"' not in site.get("/datasets").text


@pytest.mark.parametrize(
    ("fields", "where", "words"),
    [
        ({"name": "mnist"}, "import-name-error", "Choose another name."),
        ({"name": "Not A Name!"}, "import-name-error", "lowercase letters, digits and hyphens"),
        ({"size": "4"}, "import-size-error", "from 8 to 512. You typed 4."),
        ({"size": "x" * 50}, "import-size-error", "from 8 to 512."),
    ],
)
def test_errors_stand_at_their_field_and_typed_values_stay(
    site: Client, fields: dict[str, Any], where: str, words: str
) -> None:
    answer = send(site, **fields)
    assert answer.status_code == 422
    assert f'id="{where}"' in answer.text
    assert words in answer.text
    for value in fields.values():
        assert f'value="{value}"' in answer.text


def test_no_file(site: Client) -> None:
    answer = site.post("/datasets", data={"name": "shades"})
    assert answer.status_code == 422
    assert 'id="import-file-error"' in answer.text
    assert "No file was chosen." in answer.text


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("My Cats.tar.gz", "my-cats"),
        ("a.ZIP", "a"),
        ("--x--.tgz", "x"),
        ("日本.zip", ""),
        ("", ""),
        ("x" * 80 + ".zip", "x" * 64),
    ],
)
def test_a_name_from_the_files_name(file: str, name: str) -> None:
    assert suggested_name(file) == name


# Pictures ---------------------------------------------------------------------------------------------------------------


def test_one_image(site: Client, home: Path, digits: catalogue.Dataset) -> None:
    address = f"/images/digits/{digits.test_fingerprint}/test/3.png"
    answer = site.get(address)
    assert answer.headers["Content-Type"] == "image/png"
    assert "immutable" in answer.headers["Cache-Control"]
    shown = np.asarray(Image.open(io.BytesIO(answer.content)))
    stored = catalogue.open_split(home, "digits", "test").images[3]
    assert (shown == stored[0]).all()
    assert site.get(address, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304
    permuted = np.asarray(Image.open(io.BytesIO(site.get(f"{address}?permutation=7").content)))
    order = catalogue.pixel_permutation(28, 28, 7)
    assert (permuted.ravel() == stored[0].ravel()[order]).all()
    assert not (permuted == shown).all()


def test_images_of_three_channels(site: Client, home: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for label, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            for number in range(5):
                image = io.BytesIO()
                Image.new("RGB", (16, 16), colour).save(image, "PNG")
                archive.writestr(f"{label}/{number}.png", image.getvalue())
    send(site, "colours", file.getvalue())
    wait_for(lambda: is_ready(site, "colours"))
    dataset = catalogue.get_dataset(home, "colours")
    answer = site.get(f"/images/colours/{dataset.train_fingerprint}/train/0.png")
    shown = Image.open(io.BytesIO(answer.content))
    assert (shown.mode, shown.size, shown.getpixel((0, 0))) == ("RGB", (16, 16), (0, 0, 255))


def test_images_that_are_not_there(site: Client, digits: catalogue.Dataset) -> None:
    right = digits.test_fingerprint
    wrong_index = site.get(f"/images/digits/{right}/test/360.png")
    assert wrong_index.status_code == 404
    assert "There is no image 360: the test split of digits has 360, counted from 0." in wrong_index.text
    for address in (
        f"/images/digits/{'0' * 64}/test/0.png",
        f"/images/nothing/{right}/test/0.png",
        f"/images/digits/{right}/train/0.png",
    ):
        answer = site.get(address)
        assert answer.status_code == 404
        assert "are not available" in answer.text
    assert site.get(f"/images/digits/{right}/test/-1.png").status_code == 422
    assert site.get(f"/images/digits/{right}/other/0.png").status_code == 422


def test_the_sheet_of_samples(site: Client, digits: catalogue.Dataset) -> None:
    assert digits.train_fingerprint is not None
    lasting = site.get(f"/datasets/digits/samples.png?v={digits.train_fingerprint[:12]}")
    assert lasting.status_code == 200
    assert "immutable" in lasting.headers["Cache-Control"]
    assert site.get("/datasets/digits/samples.png").headers["Cache-Control"] == "no-cache"
    assert site.get("/datasets/mnist/samples.png").status_code == 404
    assert site.get("/datasets/nothing/samples.png").status_code == 404


# Damaged sets --------------------------------------------------------------------------------------------------------

DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda folder: (folder / "meta.json").write_bytes(b""),
    "cut": lambda folder: (folder / "meta.json").write_bytes((folder / "meta.json").read_bytes()[:99]),
    "no fields": lambda folder: (folder / "meta.json").write_text('{"schema": 1}'),
    "wrong types": lambda folder: (folder / "meta.json").write_text('{"schema": 1, "title": 7, "image_shape": "x"}'),
    "missing": lambda folder: (folder / "meta.json").unlink(),
    "no images": lambda folder: (folder / "train-images.npy").unlink(),
    "cut images": lambda folder: os.truncate(folder / "test-images.npy", 700),
    "no labels": lambda folder: (folder / "test-labels.npy").write_bytes(b""),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_set_is_shown_refused_and_removed(site: Client, home: Path, imported: Path, kind: str) -> None:
    shutil.copytree(imported, home / "datasets")
    fingerprint = catalogue.get_dataset(home, "shades").test_fingerprint
    DAMAGES[kind](home / "datasets" / "shades")
    page = joined(site.get("/datasets").text)
    assert "The data set shades is damaged: " in page
    assert "Import the same images again under this name, or remove the data set." in page
    assert "Damaged" in page
    assert "1 damaged" in page
    api = {"Accept": "application/json"}
    shown = site.get("/api/v1/datasets/shades", headers=api).json()
    assert shown["status"] == "damaged"
    assert shown["problem"].startswith("The data set shades is damaged: ")
    assert shown in site.get("/api/v1/datasets", headers=api).json()["datasets"]
    form = site.get("/runs/new?dataset=shades")
    assert form.status_code == 200
    assert "The data set shades is damaged: " in form.text
    refused = site.post("/api/v1/runs", json={"dataset": "shades", "model": "fc"}, headers=api)
    assert refused.status_code == 422
    assert "The data set shades is damaged: " in refused.text
    for path in ("/datasets/shades/samples.png", f"/images/shades/{fingerprint}/test/0.png"):
        assert site.get(path).status_code == 404
    assert site.delete("/api/v1/datasets/shades", headers=api).status_code == 204
    assert site.get("/api/v1/datasets/shades", headers=api).status_code == 404


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets with the imported set ``shades``."""
    home = tmp_path_factory.mktemp("imported")
    (home / "shades.zip").write_bytes(make_zip())
    for _progress in worker.import_images(home, "shades", home / "shades.zip"):
        pass
    return home / "datasets"


def test_a_damaged_set_is_imported_again_under_its_name(site: Client, home: Path, imported: Path) -> None:
    shutil.copytree(imported, home / "datasets")
    DAMAGES["cut"](home / "datasets" / "shades")
    assert send(site).status_code == 303
    wait_for(lambda: catalogue.get_dataset(home, "shades").status == "ready")
    assert "There is already a data set named shades" in send(site).text


def test_a_map_of_a_file_that_is_cut_off_does_not_end_the_server(site: Client, home: Path, imported: Path) -> None:
    shutil.copytree(imported, home / "datasets")
    fingerprint = catalogue.get_dataset(home, "shades").train_fingerprint
    address = f"/images/shades/{fingerprint}/train/15.png"
    assert site.get(address).status_code == 200
    os.truncate(home / "datasets" / "shades" / "train-images.npy", 200)
    assert site.get(address).status_code == 404


def test_a_damaged_built_in_set_can_be_prepared_again(site: Client, home: Path, digits: catalogue.Dataset) -> None:
    os.truncate(home / "datasets" / "digits" / "train-images.npy", 200)
    page = joined(site.get("/datasets").text)
    assert "Prepare it again on the page Data sets." in page
    assert "Prepare again" in page
    assert site.post("/datasets/digits/prepare").status_code in (200, 303)
    wait_for(lambda: catalogue.get_dataset(home, "digits").status == "ready")
