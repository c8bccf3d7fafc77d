"""The benchmarks are fair and say what they found: both sides do the same work, and no failure is left out."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.main import create_app
from app.settings import Settings
from benchmarks import engine_loop, false_alarms, fast_parts, notebook_loop, report, sides, speed, targets
from benchmarks.epochs import matmul_share, memory, vgg_epoch, whole_epoch
from benchmarks.product import OpenPage
from benchmarks.report import Result
from benchmarks.sides import QUICK, Bench, check_same_work, interleaved
from benchmarks.through_server import fsync_seconds, work_of
from trainer import measurements, models
from trainer.config import parse_config
from trainer.datasets import cache, catalogue
from trainer.environment import Environment
from trainer.events import Epoch, Finished, Started
from trainer.host import measure
from trainer.run_folder import EventWriter, RunFolder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette asks for another client library
    from starlette.testclient import TestClient

NUM_TRAIN, NUM_TEST = 150, 30  # 150: two whole batches of 64 and a short one


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """The loops set the number of threads of the process that they are in."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with two small data sets of ten classes: ``grey`` 28 x 28 and ``colour`` 32 x 32."""
    monkeypatch.setenv("RUNOFF_HOME", str(tmp_path))
    monkeypatch.delenv("RUNOFF_DATASETS", raising=False)
    for name, shape in (("grey", (1, 28, 28)), ("colour", (3, 32, 32))):
        folder = cache.folder_of(tmp_path, name)
        folder.mkdir(parents=True)
        splits = {split: rows(count, shape) for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST))}
        facts = {
            "title": name,
            "kind": "imported",
            "source": "",
            "unreadable": [],
            "num_unreadable": 0,
            "num_ignored": 0,
            "created_at": "2026-01-01T00:00:00.000Z",
        }
        cache.write_cache(folder, splits, [f"class {number}" for number in range(10)], facts, lambda progress: None)
    (tmp_path / "runs").mkdir()
    return tmp_path


def rows(count: int, shape: tuple[int, int, int]) -> cache.Rows:
    random = np.random.default_rng(count)
    images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
    return cache.Rows(images, np.arange(count), np.arange(count) % 10)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], Any]:
    """What the last line of the output says, as JSON."""
    return lambda: json.loads(capsys.readouterr().out.splitlines()[-1])


# Both sides ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "shape"), [("fc", (1, 28, 28)), ("cnn", (1, 28, 28)), ("lenet", (3, 32, 32)), ("vgg", (3, 32, 32))]
)
def test_the_nets_of_both_sides_have_the_same_weights(net: str, shape: tuple[int, int, int]) -> None:
    config, _warnings = parse_config({"dataset": "mnist", "model": net})
    ours = [tuple(p.shape) for p in models.build(config, shape, 10).parameters()]
    assert ours == [tuple(p.shape) for p in notebook_loop.NETS[net]().parameters()]


@pytest.mark.parametrize(("net", "data"), [("fc", "grey"), ("cnn", "grey"), ("lenet", "colour")])
def test_both_sides_do_the_same_work_with_the_short_last_batch(
    home: Path, said: Callable[[], Any], net: str, data: str
) -> None:
    notebook_loop.main([net, "--arrays", str(home / "datasets" / data), "--threads", "1"])
    notebook = said()
    config = {"dataset": data, "model": net, "precision": "float32"}
    engine_loop.main(["--home", str(home), "--threads", "1", "--", json.dumps(config)])
    runoff = said()
    for side in (notebook, runoff):
        [loop] = side["loops"]
        assert (loop["steps"], loop["num_trained"], loop["num_tested"]) == (3, NUM_TRAIN, NUM_TEST)
        assert loop["seconds"] == pytest.approx(loop["train_seconds"] + loop["test_seconds"])
    check_same_work(notebook["loops"][0], runoff["loops"][0])


def test_a_part_of_an_epoch_is_the_same_part_on_both_sides(home: Path, said: Callable[[], Any]) -> None:
    notebook_loop.main(["fc", "--arrays", str(home / "datasets" / "grey"), "--steps", "2", "--seeds", "0", "1"])
    notebook = said()
    config = {"dataset": "grey", "model": "fc", "train_fraction": 128 / NUM_TRAIN, "precision": "float32"}
    engine_loop.main(["--home", str(home), "--", json.dumps(config)])
    assert [loop["num_trained"] for loop in notebook["loops"]] == [128, 128]
    check_same_work(notebook["loops"][1], said()["loops"][0])


def test_less_work_on_one_side_is_refused() -> None:
    work = {"steps": 3, "num_trained": 150, "num_tested": 30}
    check_same_work(work, {**work, "seconds": 1})
    for name in work:
        with pytest.raises(ValueError, match=f"void: {name}"):
            check_same_work(work, {**work, name: work[name] - 1})


def test_the_sides_take_turns() -> None:
    turns: list[str] = []

    def side(name: str, number: int) -> dict[str, Any]:
        turns.append(f"{name}{number}")
        return {}

    interleaved(2, {name: partial(side, name) for name in "ab"})
    assert turns == ["a0", "b0", "a1", "b1"]


def test_the_precision_is_settled_once(home: Path, said: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BUDGET_SECONDS", 0.05)
    arguments = ["--home", str(home), "--threads", "1", "--settle", "--", '{"dataset": "grey", "model": "fc"}']
    engine_loop.main(arguments)
    [found] = measurements.read(home)["precision"].values()
    assert found["chosen"] in ("float32", "bfloat16")
    monkeypatch.setattr(measure, "measure", None)
    engine_loop.main(arguments)
    assert said() == {}


# What is made of it --------------------------------------------------------------------------------------------------


def bench(home: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose sides run in no process: 128 images in 2 s by the notebook, in 1 s by Runoff, each with 1 s of test."""
    made = Bench(home, "grey", "colour", None, replace(QUICK, vgg_steps=1), quick=True)

    def side(seconds: float) -> Callable[..., dict[str, Any]]:
        loop = {
            "steps": 1,
            "num_trained": 128,
            "num_tested": NUM_TEST,
            "seconds": seconds + 1,
            "train_seconds": seconds,
            "test_seconds": 1.0,
            "accuracy": 0.5,
            "flops_per_image": 10**9,
            "matmul": {"gflops": 256.0, "size": 1024, "fastest": 300.0},
            "epochs": [{"seconds": seconds, "at_seconds": seconds + 1, "test_accuracy": 0.5}],
        }
        measured = {"loops": [loop], "threads": 2, "precision": "float32", "peak_mb": 100 * seconds}
        return lambda *arguments, **options: measured

    monkeypatch.setattr(made, "notebook", side(2.0))
    monkeypatch.setattr(made, "runoff", side(1.0))
    return made


def test_a_part_is_scaled_to_the_epoch_and_the_test_is_not(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(home, monkeypatch)
    assert whole_epoch(made.notebook("vgg"), 2 * 128, epochs=10) == 10 * 2 * 2.0 + 1.0
    [vgg] = vgg_epoch(made)
    scale = NUM_TRAIN / 128
    assert vgg.ratio == pytest.approx((2 * scale + 1) / (scale + 1))


def test_memory_is_that_of_both_sides(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.epochs.peak_of_server", lambda _home, _config: 150.0)
    [result] = memory(bench(home, monkeypatch))
    assert result.figure == "50 % of the notebook's"
    assert [row[1] for row in result.rows] == ["200", "100", "150"]


@pytest.mark.slow
def test_the_memory_of_a_process_holds_that_of_its_children() -> None:
    child = "import sys, time; one = bytearray({0} << 20); time.sleep({1})"
    alone = child.format(200, 1)
    both = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {alone!r}])"
    peaks = []
    for code in (alone, both):
        with subprocess.Popen([sys.executable, "-c", code], text=True) as process:
            peaks.append(sides.peak_mb(process.pid, lambda: process.poll() is not None))
    assert 200 < peaks[0] < 400
    assert 200 < peaks[1] < 400


def test_time_to_the_accuracy_of_the_notebook_s_vgg(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(home, monkeypatch)
    [result] = targets.vgg_target(made)
    assert (result.figure, result.ratio) == ("not reached in 1 of 1 trainings", None)
    monkeypatch.setattr(targets, "VGG_TARGET", 0.5)
    [result] = targets.vgg_target(made)
    assert result.ratio == pytest.approx((10 * 2 * NUM_TRAIN / 128 + 1) / 2)


def test_every_training_must_reach_the_accuracy(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(home, monkeypatch)
    made.plan = replace(made.plan, repeats=3, vgg_target_steps=7)
    asked: list[tuple[list[int], int]] = []
    trained: list[int] = []
    notebook, measured = made.notebook("vgg"), made.runoff([{}])

    def part(model: str, *, seeds: list[int], steps: int) -> dict[str, Any]:
        asked.append((seeds, steps))
        return notebook

    def training(configs: list[dict[str, Any]]) -> dict[str, Any]:
        trained.append(configs[0]["seed"])
        accuracy = 0.81 if configs[0]["seed"] == 2 else 0.83
        loop = measured["loops"][0]
        return {**measured, "loops": [{**loop, "epochs": [{**loop["epochs"][0], "test_accuracy": accuracy}]}]}

    monkeypatch.setattr(made, "notebook", part)
    monkeypatch.setattr(made, "runoff", training)
    [result] = targets.vgg_target(made)
    assert (result.figure, result.ratio) == ("not reached in 1 of 3 trainings", None)
    assert asked == [([1], 7), ([2], 7), ([3], 7)]
    assert trained == [1, 2, 3]


def test_the_share_is_flops_of_training_by_those_of_the_product(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [share] = matmul_share(bench(home, monkeypatch))
    assert share.figure == "50 %"  # 128 images of 1 GFLOP in 1 s, and 256 GFLOP/s


@pytest.mark.parametrize(("accuracy", "figure"), [(0.5, "1.5 times as fast"), (0.6, "not reached in 1 of 1 trainings")])
def test_time_to_accuracy_needs_the_accuracy(
    home: Path, monkeypatch: pytest.MonkeyPatch, accuracy: float, figure: str
) -> None:
    made = bench(home, monkeypatch)
    notebook = made.notebook("cnn")
    measured = {**notebook, "loops": [{**notebook["loops"][0], "accuracy": accuracy}]}
    monkeypatch.setattr(made, "notebook", lambda *arguments, **options: measured)
    [result] = targets.time_to_accuracy("cnn", "mnist-cnn-fast", made)
    assert result.figure == figure
    assert (result.ratio is None) == (accuracy > 0.5)


def test_epochs_are_timed_at_the_present_rate() -> None:
    logged = [{"epoch": n, "images_per_second": 50.0, "seconds": 4.0, "test_accuracy": n / 10} for n in (1, 2, 3)]
    epochs = targets.at_rate(logged, images_per_second=100.0, test_seconds=1.0)
    assert [epoch["at_seconds"] for epoch in epochs] == [3.0, 6.0, 9.0]
    assert targets.seconds_to(epochs, 0.2) == 6.0
    assert targets.seconds_to(epochs, 0.4) is None


def vgg_folder(home: Path, *, fingerprint: str | None = None, ended: bool = True) -> RunFolder:
    """A run of vgg with two epochs, 80 and 83 %, of 100 s and 10 s of test each."""
    dataset = catalogue.get_dataset(home, "colour")
    assert dataset.train_fingerprint
    assert dataset.test_fingerprint
    folder = RunFolder.create(home / "runs", parse_config({"dataset": "colour", "model": "vgg", "epochs": 2})[0])
    writer = EventWriter(folder.events_path, 1)
    writer.write(
        Started(
            num_parameters=1,
            device="cpu",
            precision="float32",
            num_threads=2,
            num_train=NUM_TRAIN,
            num_validation=0,
            num_test=NUM_TEST,
            steps_per_epoch=3,
            total_steps=6,
            first_epoch=1,
            train_fingerprint=dataset.train_fingerprint,
            test_fingerprint=fingerprint or dataset.test_fingerprint,
            class_names=[],
            image_shape=[3, 32, 32],
        )
    )
    for number, accuracy in ((1, 0.80), (2, 0.83)):
        writer.write(
            Epoch(
                epoch=number,
                step=3 * number,
                train_loss=1.0,
                train_accuracy=0.5,
                test_loss=1.0,
                test_accuracy=accuracy,
                test_correct=round(NUM_TEST * accuracy),
                test_total=NUM_TEST,
                learning_rate=0.1,
                seconds=100.0,
                evaluation_seconds=10.0,
                images_per_second=NUM_TRAIN / 100,
                save_seconds=1.0,
            )
        )
    if ended:
        writer.write(Finished(2))
    writer.close()
    return folder


def test_a_long_run_is_read_from_its_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(home, monkeypatch)
    made.run_folders = [vgg_folder(home).path]
    with pytest.raises(ValueError, match="Measure vgg-target first"):
        [*targets.vgg_runs(made)]
    made.found = {result.name: result for result in targets.vgg_target(made)}
    [result] = targets.vgg_runs(made)
    epoch = NUM_TRAIN / 128  # seconds, at 128 images a second
    assert result.ratio == pytest.approx((10 * 2 * epoch + 1) / (2 * (epoch + 1)))
    assert "83.00 % in" in result.figure
    assert "222" in result.sentence  # by its own clock: 2 x (100 + 10 + 1)


def test_a_run_on_other_images_or_without_an_end_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(home, monkeypatch)
    with pytest.raises(ValueError, match="other images"):
        targets.read_run(made, vgg_folder(home, fingerprint="0" * 64))
    with pytest.raises(ValueError, match="finished run"):
        targets.read_run(made, vgg_folder(home, ended=False))


def test_the_work_of_a_run_is_read_from_its_events(home: Path) -> None:
    work = work_of(home, vgg_folder(home).id)
    assert (work["steps"], work["num_trained"], work["num_tested"]) == (6, 2 * NUM_TRAIN, NUM_TEST)
    assert work["save_seconds"] == [1.0, 1.0]
    assert 0 <= work["loop_seconds"] < 60


def test_the_cost_of_a_sync_leaves_no_file(tmp_path: Path) -> None:
    assert len(fsync_seconds(tmp_path, 3)) == 3
    assert [*tmp_path.iterdir()] == []


# The open page -------------------------------------------------------------------------------------------------------


def test_an_open_page_asks_as_its_script_does(home: Path) -> None:
    app = create_app(Settings(home=home), train=False)
    with TestClient(app, base_url="http://localhost", headers={"Sec-Fetch-Site": "same-origin"}) as client:
        run = client.post("/api/v1/runs", json={"dataset": "grey", "model": "fc"}).raise_for_status().json()
        page = OpenPage(client, run["id"])
        assert page.ask() == 200
        assert page.num_requests == 3  # the page and its two figures
        assert page.ask() == 304
        assert page.num_requests == 4
        client.patch(f"/api/v1/runs/{run['id']}", json={"name": "changed"}).raise_for_status()
        assert page.ask() == 200


# The page and the picture --------------------------------------------------------------------------------------------

RESULTS = {
    "fc": Result("fc", "FC <on> MNIST", "14.2 times as fast", "3 each", "Words.", ["side"], [["a | b"]], ratio=14.2),
    "lenet-target": Result("lenet-target", "LeNet", "not reached in 1 of 3 trainings", "3"),
    "start_latency": Result("start_latency", "Start", "", "", text="0.05 s\n"),
}


def test_the_page_says_everything_failures_too() -> None:
    text = report.page(RESULTS.values())
    assert "| FC <on> MNIST | **14.2 times as fast** | 3 each |" in text
    assert "| LeNet | **not reached in 1 of 3 trainings** | 3 |" in text
    assert "a \\| b" in text
    assert "```\n0.05 s\n```" in text


def test_the_picture_has_a_bar_for_each_ratio() -> None:
    root = ET.fromstring(report.picture([*RESULTS.values(), replace(RESULTS["fc"], ratio=7.1)]))
    bars = [bar for bar in root.iter("{http://www.w3.org/2000/svg}rect") if bar.get("class") == "bar"]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert len(widths) == 2
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.1)


def test_results_are_kept_and_written_in_the_page_s_order(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert report.read_results(path) == {}
    report.keep_results(path, dict(reversed(RESULTS.items())))
    kept = speed.ordered(report.read_results(path))
    assert kept == RESULTS
    assert [*kept] == ["fc", "lenet-target", "start_latency"]
    report.write(tmp_path, kept)
    assert (tmp_path / "benchmarks.md").read_text(encoding="utf-8").startswith("# Benchmarks")
    assert (tmp_path / report.PICTURE).exists()


def test_numbers_are_medians_with_both_ends() -> None:
    assert report.spread([3.0, 1.0, 200.0]) == "3.00 (1.00 to 200)"
    assert report.spread([0.5]) == "0.500"
    assert report.number(12_345.6) == "12,346"


def test_names_that_are_no_case_and_a_quick_page_are_refused() -> None:
    for arguments in (["--only", "fc,nothing"], ["--quick", "--write"]):
        with pytest.raises(SystemExit):
            speed.main(arguments)


# False alarms --------------------------------------------------------------------------------------------------------


def told(answers: list[list[int]]) -> tuple[list[str], list[str | None]]:
    """What is said of comparisons of two seeds against two others, with that many errors each among 1,000 images."""
    labels = np.zeros(1000, np.int64)
    results = []
    for counts in answers:
        runs = [
            false_alarms.compared(seed, group, "digits", "images", labels, (np.arange(1000) < errors).astype(np.uint8))
            for seed, (group, errors) in enumerate(zip(["one", "one", "other", "other"], counts, strict=True))
        ]
        results.append((false_alarms.compare_sides([runs[:2], runs[2:]]), 0.5))
    return [*false_alarms.report(results, 1000)], [found.verdict for found, _alone in results]


def test_a_false_alarm_is_a_verdict_for_either_side() -> None:
    lines, verdicts = told([[100, 101, 500, 501], [500, 501, 100, 101], [100, 140, 120, 130]])
    assert verdicts == ["a_better", "b_better", "inconclusive"]
    assert "3 comparisons of 2 seeds against 2 others (Welch t), 1,000 test images" in lines[0]
    assert lines[1].startswith("one recipe called better: 2 of 3: 66.7%")
    assert lines[2].startswith("p at most 0.05, whatever the margin: 2 of 3")
    assert lines[3].startswith("p at most 0.05 by the seeds alone: 0 of 3")


def test_no_seed_is_compared_twice() -> None:
    seeds = [seed for sides in false_alarms.comparisons(200, 5) for side in sides for seed in side]
    assert seeds == list(range(2000))


def test_kept_answers_go_on_where_they_were(tmp_path: Path) -> None:
    path, predicted = tmp_path / "answers.jsonl", np.arange(10, dtype=np.uint8)
    packed = base64.b64encode(zlib.compress(predicted.tobytes())).decode()
    false_alarms.Kept(path, {"recipe": "x"}).add(3, packed)
    with path.open("ab") as file:
        file.write(b'{"seed": 4, "predic')  # cut off by a power failure
    kept = false_alarms.Kept(path, {"recipe": "x"})
    assert [*kept.by_seed] == [3]
    assert kept.by_seed[3].tolist() == predicted.tolist()
    kept.add(4, packed)
    assert sorted(false_alarms.Kept(path, {"recipe": "x"}).by_seed) == [3, 4]
    with pytest.raises(ValueError, match="something else"):
        false_alarms.Kept(path, {"recipe": "y"})


def test_the_recipe_trained_is_the_preset(home: Path) -> None:
    config = false_alarms.recipe("grey", 7)
    assert (config.model, config.epochs, config.seed) == ("fc", 1, 7)
    first, again = (false_alarms.answers(home, config) for _time in range(2))
    assert first.tolist() == again.tolist()
    assert len(first) == NUM_TEST
    assert first.tolist() != false_alarms.answers(home, false_alarms.recipe("grey", 8)).tolist()


def test_seeds_dealt_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(false_alarms, "DEALS", 1_000)
    even = np.random.default_rng(0).normal(0.9, 0.01, 500).tolist()
    rate = float(false_alarms.regrouped(even, 5).rpartition(" in ")[2].rstrip("%"))
    assert 3 <= rate <= 7
    assert false_alarms.regrouped([0.5] * 10, 5).endswith("in 0.0%")


@pytest.mark.parametrize("part", [fast_parts.ALL, "convolution"])
def test_an_epoch_is_timed_without_a_fast_part(part: str) -> None:
    net = replace(fast_parts.NETS["cnn"], num_train=64, num_test=64)
    assert fast_parts.measure(net, part, "cpu", "float32")["seconds"] > 0


def test_each_fast_part_changes_what_it_names() -> None:
    environment = Environment(
        "cpu", "float32", 1, convolution="fused", fused_norm=True, channels_last=True, graphs=True
    )
    for part, fields in fast_parts.FIELDS.items():
        if fields:
            changed = fast_parts.without(environment, part)
            assert changed != environment
            assert {name: getattr(changed, name) for name in fields} == fields
