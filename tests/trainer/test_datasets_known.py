"""The known data sets, their download, the catalogue, and the child process that makes caches."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from trainer.datasets import download, originals, worker
from trainer.datasets.catalogue import (
    Dataset,
    DatasetError,
    UnknownDataset,
    get_dataset,
    known_shape,
    list_datasets,
    open_split,
    pixel_permutation,
    samples_path,
)
from trainer.datasets.download import DownloadFailed, Remote, fetch
from trainer.datasets.facts import KNOWN
from trainer.datasets.worker import import_images, prepare
from trainer.events import Progress

pytestmark = pytest.mark.slow

ROOT = Path(os.environ.get("RUNOFF_DATASETS") or Path(__file__).parents[3] / "shared" / "datasets")
needs_mnist = pytest.mark.skipif(not (ROOT / "MNIST/raw").is_dir(), reason="no MNIST below RUNOFF_DATASETS")
needs_cifar = pytest.mark.skipif(
    not (ROOT / "cifar10-jpeg.zip").is_file(), reason="no cifar10-jpeg.zip below RUNOFF_DATASETS"
)


@pytest.fixture(autouse=True)
def no_datasets_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNOFF_DATASETS", raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "not" / "yet"


def left_behind(home: Path) -> list[Path]:
    """Files that are neither a lock nor part of a finished cache or the note of its check."""
    finished = {home / "datasets" / dataset.name for dataset in list_datasets(home) if dataset.status == "ready"}
    return [
        path
        for path in home.rglob("*")
        if path.is_file()
        and path.parent.name != ".locks"
        and path.parent not in finished
        and not (path.parent.name == ".checked" and home / "datasets" / path.stem in finished)
    ]


# Catalogue -----------------------------------------------------------------------------------------------------------


def test_the_catalogue_imports_nothing_heavy() -> None:
    program = (
        "import sys, trainer.datasets.catalogue, trainer.datasets.worker\n"
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'PIL', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_home_that_does_not_exist_yet(home: Path) -> None:
    states = {dataset.name: dataset.status for dataset in list_datasets(home)}
    assert states == {"mnist": "absent", "fashion-mnist": "absent", "cifar10": "absent", "digits": "available"}
    cifar10 = get_dataset(home, "cifar10")
    assert (cifar10.image_shape, cifar10.num_train, cifar10.num_test) == ((3, 32, 32), 50_000, 10_000)
    assert cifar10.class_names[::9] == ["airplane", "truck"]
    assert (cifar10.mean, cifar10.train_counts, cifar10.train_fingerprint) == ([], [], None)
    assert (known_shape("mnist"), known_shape("mine")) == ((1, 28, 28), None)
    with pytest.raises(FileNotFoundError):
        open_split(home, "mnist", "train")
    assert not home.exists()


@pytest.mark.parametrize("name", ["cifar100", "../mnist", "", "a\n" * 99, ".making"])
def test_unknown_names(home: Path, name: str) -> None:
    with pytest.raises(UnknownDataset, match=rf"Available: {', '.join(KNOWN)}\.$") as caught:
        get_dataset(home, name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    with pytest.raises(UnknownDataset):
        next(prepare(home, name))


def test_found_below_the_root_that_is_only_read(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNOFF_DATASETS", str(tmp_path / "root"))
    (tmp_path / "root").mkdir()
    assert get_dataset(home, "cifar10").status == "absent"
    (tmp_path / "root" / "cifar-10-python.tar.gz").touch()
    assert get_dataset(home, "cifar10").status == "available"


def test_the_pixel_permutation_never_changes() -> None:
    permutation = pixel_permutation(28, 28, seed=0)
    assert sorted(permutation.tolist()) == list(range(784))
    assert permutation.tolist() == pixel_permutation(28, 28, seed=0).tolist()
    assert permutation.tolist() != pixel_permutation(28, 28, seed=1).tolist()
    assert permutation.dtype == np.int64
    assert permutation[:5].tolist() == FIRST_FIVE


FIRST_FIVE = [269, 11, 403, 600, 196]

# Real data, made by the child process --------------------------------------------------------------------------------


def all_progress(home: Path, name: str) -> list[Progress]:
    return list(prepare(home, name))


DIGITS_TRAIN = "9abff290e4028df7e36151550f81ffa76936d29b4316cbc4778f1a1635cf5770"
DIGITS_TEST = "79603ec2516f34bf65872a463f1044b89becdb3070b8c806d5b33f5d67c55e8b"


def test_the_table_of_digits_is_scikit_learns() -> None:
    images, labels = originals.digits_table()
    bunch = load_digits()
    np.testing.assert_array_equal(images, bunch.images)
    np.testing.assert_array_equal(labels, bunch.target)
    licence = originals.DIGITS.with_name("digits.LICENSE.txt").read_text(encoding="utf-8")
    assert "The scikit-learn developers" in licence


def test_digits(home: Path) -> None:
    reports = all_progress(home, "digits")
    assert reports[-1] == Progress("cache", 1797, 1797, "images")
    digits = get_dataset(home, "digits")
    assert (digits.train_fingerprint, digits.test_fingerprint) == (DIGITS_TRAIN, DIGITS_TEST)
    assert (digits.kind, digits.status, digits.image_shape) == ("built in", "ready", (1, 28, 28))
    assert (digits.num_train, digits.num_test) == (1437, 360)
    every = [a + b for a, b in zip(digits.train_counts, digits.test_counts, strict=True)]
    assert every == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert open_split(home, "digits", "test").images.shape == (360, 1, 28, 28)
    with Image.open(samples_path(home, "digits")) as sheet:
        assert (sheet.size, sheet.mode) == ((320, 128), "L")
    assert all_progress(home, "digits") == []  # it is ready: nothing to do
    assert left_behind(home) == []


@pytest.fixture(scope="module")
def mnist_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("mnist")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNOFF_DATASETS", str(ROOT))
        assert get_dataset(home, "mnist").status == "available"
        all_progress(home, "mnist")
    return home


@needs_mnist
def test_mnist_is_mnist(mnist_home: Path) -> None:
    mnist = get_dataset(mnist_home, "mnist")
    assert (mnist.status, mnist.num_train, mnist.num_test) == ("ready", 60_000, 10_000)
    assert mnist.mean == pytest.approx([0.1307], abs=5e-5)
    assert mnist.std == pytest.approx([0.3081], abs=5e-5)
    assert mnist.train_counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    train, test = (open_split(mnist_home, "mnist", split) for split in ("train", "test"))
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert train.images.shape == (60_000, 1, 28, 28)
    assert train.images[0].sum() > 0


@needs_cifar
def test_class_folders_of_the_real_cifar10_zip(home: Path, tmp_path: Path) -> None:
    wanted = {f"{i:04d}.jpg" for i in range(12)}
    with zipfile.ZipFile(ROOT / "cifar10-jpeg.zip") as whole, zipfile.ZipFile(tmp_path / "some.zip", "w") as some:
        for name in whole.namelist():
            if name.rpartition("/")[2] in wanted:
                some.writestr(f"cifar/{name}", whole.read(name))
    reports = list(import_images(home, "some", tmp_path / "some.zip", title="Some of CIFAR-10"))
    assert reports[-1] == Progress("cache", 240, 240, "images")
    some_set = get_dataset(home, "some")
    assert (some_set.title, some_set.source, some_set.kind) == ("Some of CIFAR-10", "some.zip", "imported")
    assert (some_set.image_shape, some_set.num_train, some_set.num_test) == ((3, 32, 32), 120, 120)
    assert some_set.class_names == [*KNOWN["cifar10"].class_names]
    assert some_set.mean == pytest.approx([0.49, 0.48, 0.45], abs=0.05)
    with zipfile.ZipFile(ROOT / "cifar10-jpeg.zip") as whole, whole.open("test/bird/0003.jpg") as file:
        expected = np.asarray(Image.open(io.BytesIO(file.read()))).transpose(2, 0, 1)
    assert (open_split(home, "some", "test").images[2 * 12 + 3] == expected).all()


# The child -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Takes long enough to be interrupted in the middle."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "PNG")
    path = tmp_path_factory.mktemp("large") / "large.zip"
    with zipfile.ZipFile(path, "w") as target:
        for i in range(8_000):
            target.writestr(f"{'ab'[i % 2]}/{i}.png", buffer.getvalue())
    return path


def until(reports: Iterator[Progress], what: str) -> None:
    assert any(report.what == what for report in reports)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The child processes that the worker starts from now on."""
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr(worker.subprocess, "Popen", Noted)  # type: ignore[attr-defined]
    return started


@pytest.mark.parametrize("what", ["import", "cache"])
def test_closing_the_generator_ends_the_child(
    home: Path, large_zip: Path, children: list[subprocess.Popen[bytes]], what: str
) -> None:
    with closing(import_images(home, "large", large_zip)) as reports:
        until(reports, what)
    assert children[0].returncode == 128 + signal.SIGTERM
    assert left_behind(home) == []
    assert [dataset.name for dataset in list_datasets(home)][len(KNOWN) :] == []


def test_a_killed_child_is_an_error_and_leaves_nothing(
    home: Path, large_zip: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    reports = import_images(home, "large", large_zip)
    until(reports, "cache")
    children[0].kill()
    with pytest.raises(DatasetError, match="SIGKILL"):
        list(reports)
    assert left_behind(home) == []


def test_a_child_whose_reader_is_gone_ends_and_cleans_up(home: Path, large_zip: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "trainer.datasets", "import", "large", str(large_zip)],
        stdout=subprocess.PIPE,
        env={**os.environ, "RUNOFF_HOME": str(home)},
    )
    assert child.stdout is not None
    with child:
        child.stdout.readline()
        child.stdout.close()
        assert child.wait(20) == 1
    assert left_behind(home) == []


def test_errors_reach_the_caller_in_words(home: Path, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"no zip")
    with pytest.raises(DatasetError) as caught:
        list(import_images(home, "mine", tmp_path / "x.zip"))
    assert caught.value.message == "x.zip is not a zip, tar or tar.gz archive."
    assert caught.value.advice == "Pack the class folders as a zip, then import that."
    with pytest.raises(DatasetError, match="is reserved for a built-in data set"):
        next(import_images(home, "mnist", tmp_path / "x.zip"))
    with pytest.raises(DatasetError, match="CIFAR-10 is not on this machine"):
        list(prepare(home, "cifar10", download=False))


def test_two_makers_at_once_make_one_cache(home: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        for i in range(40):
            buffer = io.BytesIO()
            Image.new("L", (8, 8), i).save(buffer, "PNG")
            target.writestr(f"{'ab'[i % 2]}/{i}.png", buffer.getvalue())

    def make(_number: int) -> Dataset:
        list(import_images(home, "mine", tmp_path / "a.zip"))
        return get_dataset(home, "mine")

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(make, range(2))
    assert first == second
    assert left_behind(home) == []


# Downloads -----------------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes]
    cut: bool

    def do_GET(self) -> None:
        data = self.files.get(self.path.lstrip("/"))
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if self.cut else data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class Server:
    """Serves ``files`` on this machine; with ``cut`` it breaks off in the middle."""

    def __init__(self) -> None:
        self.handler: type[Handler] = type("Own", (Handler,), {"files": {}, "cut": False})
        self.http = http.server.HTTPServer(("127.0.0.1", 0), self.handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, name: str, data: bytes) -> Remote:
        self.handler.files[name] = data
        return Remote((self.url + name,), hashlib.md5(data).hexdigest())

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as running:
        yield running


def failure_of(remote: Remote, target: Path) -> str:
    with pytest.raises(DownloadFailed) as caught:
        fetch(remote, target, lambda done, total: None)
    assert not target.parent.exists() or list(target.parent.iterdir()) == []
    return caught.value.reason


def test_a_download_arrives_whole_or_not_at_all(server: Server, tmp_path: Path) -> None:
    target, counts = tmp_path / "deep" / "file", list[tuple[int, int]]()
    good = server.add("good", b"x" * 1_000_000)
    assert "checksum" in failure_of(replace(good, md5="0" * 32), target)
    assert failure_of(replace(good, urls=(server.url + "gone",)), target) == "the server answered 404"
    server.handler.cut = True
    assert failure_of(good, target) == "the connection was lost"
    server.handler.cut = False
    both = replace(good, urls=(server.url + "gone", *good.urls))
    fetch(both, target, lambda done, total: counts.append((done, total)))
    assert target.read_bytes() == b"x" * 1_000_000
    assert counts[-1] == (1_000_000, 1_000_000)
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_no_connection_is_said_at_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.close()
    assert failure_of(Remote((server.url + "x",), ""), tmp_path / "a" / "x") == "no connection"
    never = threading.Event()
    monkeypatch.setattr(download, "_CONNECT_SECONDS", 0.1)
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: never.wait(20))
    assert failure_of(Remote(("http://slow.invalid/x",) * 2, ""), tmp_path / "a" / "x") == "no connection"
    never.set()


def test_an_absent_set_that_can_not_be_had(home: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    server.close()
    monkeypatch.setattr(originals, "remotes", lambda known: [Remote((server.url,), "")] * len(known.packed))
    for name, title in (("cifar10", "CIFAR-10"), ("fashion-mnist", "Fashion-MNIST")):
        with pytest.raises(DatasetError) as caught:
            originals.prepare(home, KNOWN[name], lambda progress: None, download=True)
        assert caught.value.message == f"{title} is not on this machine and could not be downloaded: no connection."
        assert caught.value.advice == "Import it as a zip of class folders, then start a run on that."
    assert left_behind(home) == []


def idx(array: np.ndarray) -> bytes:
    """The IDX format of MNIST: magic (type uint8, number of dimensions), big-endian sizes, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()


def small_mnist(server: Server) -> list[Remote]:
    arrays = [np.arange(n * 784).reshape(n, 28, 28) if k else np.arange(n) % 10 for n in (12, 4) for k in (1, 0)]
    names = [Path(path).name for path in KNOWN["mnist"].packed]
    return [server.add(name, gzip.compress(idx(array))) for name, array in zip(names, arrays, strict=True)]


def test_download_unpack_and_parse_mnist(home: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    found = small_mnist(server)
    monkeypatch.setattr(originals, "remotes", lambda known: found)
    known = replace(KNOWN["mnist"], num_train=12, num_test=4)
    reports: list[Progress] = []
    originals.prepare(home, known, reports.append, download=True)
    split = open_split(home, "mnist", "train")
    assert split.images.reshape(-1).tolist() == [i % 256 for i in range(12 * 784)]
    assert split.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert {report.what for report in reports} == {"download", "cache"}
    assert sorted(path.name for path in left_behind(home)) == sorted(Path(path).name for path in known.packed)


def test_wrong_or_damaged_originals_are_refused(
    home: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = small_mnist(server)
    monkeypatch.setattr(originals, "remotes", lambda known: found)
    with pytest.raises(DatasetError, match="The files of MNIST are damaged"):
        originals.prepare(home, KNOWN["mnist"], lambda progress: None, download=True)  # 12 images, not 60,000
    root = tmp_path / "root"
    for path in KNOWN["mnist"].unpacked:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"\0\0\x08\x03 cut")
    monkeypatch.setenv("RUNOFF_DATASETS", str(root))
    with pytest.raises(DatasetError, match="The files of MNIST are damaged"):
        originals.prepare(home, KNOWN["mnist"], lambda progress: None, download=True)
    assert get_dataset(home, "mnist").status == "available"


def small_cifar10(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[bytes]:
    """An archive with the names and formats of CIFAR-10's, two images a batch; torchvision is told its MD5s."""
    from torchvision.datasets import CIFAR10

    batches, md5s = list[bytes](), dict[str, str]()
    root.mkdir()
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as target:
        for number, path in enumerate(KNOWN["cifar10"].unpacked):
            pixels = np.full((2, 3072), number, np.uint8)
            value = {"data": pixels, "labels": [number, 9 - number], "label_names": [*KNOWN["cifar10"].class_names]}
            data = pickle.dumps(value)
            info = tarfile.TarInfo(path)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
            md5s[Path(path).name] = hashlib.md5(data).hexdigest()
            batches.append(data)
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, attribute, [[name, md5s[name]] for name, _md5 in getattr(CIFAR10, attribute)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5s["batches.meta"]})
    whole = (root / "cifar-10-python.tar.gz").read_bytes()
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(whole).hexdigest())
    return batches


def test_cifar10_is_read_only_after_its_checksums(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, root = replace(KNOWN["cifar10"], num_train=10, num_test=2), tmp_path / "root"
    batches = small_cifar10(monkeypatch, root)
    monkeypatch.setenv("RUNOFF_DATASETS", str(root))
    originals.prepare(home / "a", known, lambda progress: None, download=False)
    split = open_split(home / "a", "cifar10", "train")
    assert split.images[:, 2, 31, 31].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert split.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert [path.name for path in root.iterdir()] == ["cifar-10-python.tar.gz"]
    monkeypatch.setattr(pickle, "load", lambda *a, **k: pytest.fail("a pickle was opened before its checksum"))
    with (root / "cifar-10-python.tar.gz").open("ab") as archive:
        archive.write(b"\0")
    with pytest.raises(DatasetError, match="CIFAR-10 are damaged"):
        originals.prepare(home / "b", known, lambda progress: None, download=False)
    for path, data in zip(known.unpacked, batches, strict=True):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(data + b"\0")
    with pytest.raises(DatasetError, match="CIFAR-10 are damaged"):
        originals.prepare(home / "c", known, lambda progress: None, download=False)
