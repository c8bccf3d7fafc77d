"""The executor of this machine against real hosts whose runs are played (see ``tests/trainer/fake_host.py``)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.runs.executors import ExecutorUnavailable, Interrupted, Refused, RunNotStarted
from app.runs.executors.local import LocalExecutor
from trainer import wire
from trainer.config import RunConfig
from trainer.run_folder import RunFolder, read_json

pytestmark = pytest.mark.slow

FAKE_HOST = [sys.executable, str(Path(__file__).parents[1] / "trainer" / "fake_host.py"), "--idle-seconds", "1"]
CNN = {"dataset": "mnist", "model": "cnn"}


def wait_for(condition: Callable[[], Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    return value


def make_run(home: Path, behaviour: str = "trains until stopped") -> RunFolder:
    folder = RunFolder.create(home / "runs", RunConfig(dataset="mnist", model="cnn"))
    (folder.path / "behaviour").write_text(behaviour)
    return folder


def stop(folder: RunFolder) -> None:
    folder.request_stop()
    wait_for(lambda: not folder.is_alive())


def host_pid(home: Path) -> int:
    """The host's process: the parent of a run that it starts."""
    folder = make_run(home, "ends")
    executor = LocalExecutor(home, command=FAKE_HOST)
    executor.start(folder, 1, 1)
    executor.close()
    return int((read_json(folder.path / "facts.json") or {})["parent"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def executor(home: Path) -> Iterator[LocalExecutor]:
    """Also the test that nothing waits while the host starts, and that the server's token does not reach it."""
    os.environ["RUNOFF_TOKEN"] = "secret"
    executor = LocalExecutor(home, command=FAKE_HOST)
    begin = time.monotonic()
    with pytest.raises(ExecutorUnavailable, match="is starting"):
        executor.describe(CNN, [1, 28, 28], 10)
    with pytest.raises(ExecutorUnavailable, match="is starting"):
        executor.start(make_run(home), 1, 1)
    assert not executor.ready()
    assert time.monotonic() - begin < 3
    del os.environ["RUNOFF_TOKEN"]
    wait_for(executor.ready)
    yield executor
    executor.close()


def test_it_describes(executor: LocalExecutor) -> None:
    description = executor.describe(CNN, [1, 28, 28], 10)
    assert (description["num_parameters"], description["multiply_adds"]) == (6422, 149_300)


def test_what_is_wrong_with_a_config_is_the_askers_to_know(executor: LocalExecutor) -> None:
    with pytest.raises(Refused, match="model"):
        executor.describe({"model": "tree"}, [1, 28, 28], 10)


def test_a_start_returns_when_the_run_holds_its_lock(executor: LocalExecutor, home: Path) -> None:
    folder = make_run(home)
    executor.start(folder, 1, 2, "cpu")
    assert folder.is_alive()
    executor.start(folder, 1, 2, "cpu")  # asked again, as after a lost answer
    facts = read_json(folder.path / "facts.json") or {}
    assert (facts["num_threads"], facts["device"], facts["token"]) == (2, "cpu", None)
    stop(folder)


def test_a_run_that_ends_at_once_raises(executor: LocalExecutor, home: Path) -> None:
    folder = make_run(home, "ends before the lock")
    with pytest.raises(RunNotStarted, match="exit status 3"):
        executor.start(folder, 1, 1)
    assert (folder.read_exit(1) or {})["code"] == 3


MEASURE = wire.Measure(
    section="matmul", key="a", config=CNN, image_shape=[1, 28, 28], num_classes=10, num_threads=1, device="cpu"
)


def measure_in_a_thread(executor: LocalExecutor, home: Path) -> Callable[[], ExecutorUnavailable]:
    """Begin a measurement that does not end by itself; the returned function waits for what it raises."""
    problems: list[ExecutorUnavailable] = []

    def measure() -> None:
        try:
            executor.measure(MEASURE)
        except ExecutorUnavailable as problem:
            problems.append(problem)

    path = home / "measuring"
    path.unlink(missing_ok=True)
    thread = threading.Thread(target=measure)
    thread.start()
    wait_for(lambda: path.exists() and path.read_text())

    def ending() -> ExecutorUnavailable:
        thread.join(20)
        return problems[0]

    return ending


def test_a_run_interrupts_a_measurement(executor: LocalExecutor, home: Path) -> None:
    ending = measure_in_a_thread(executor, home)
    folder = make_run(home)
    executor.start(folder, 1, 1)
    assert isinstance(ending(), Interrupted)
    with pytest.raises(Interrupted, match="while a run is in progress"):
        executor.measure(MEASURE)
    stop(folder)
    wait_for(lambda: folder.read_exit(1))


def test_closing_ends_a_measurement(home: Path) -> None:
    other = LocalExecutor(home, command=FAKE_HOST)
    other.ensure_host()
    wait_for(other.ready)
    ending = measure_in_a_thread(other, home)
    other.close()
    assert not isinstance(ending(), Interrupted)
    pid = int((home / "measuring").read_text())
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


def test_a_run_that_another_process_trains_is_not_started_again(executor: LocalExecutor, home: Path) -> None:
    folder = make_run(home)
    holder = subprocess.Popen([sys.executable, "-c", _HOLD_LOCK, str(folder.path)])
    wait_for(folder.is_alive)
    with pytest.raises(RunNotStarted, match="exit status 4"):
        executor.start(folder, 1, 1)
    holder.kill()
    holder.wait()


_HOLD_LOCK = """
import sys, time; from pathlib import Path; from trainer.run_folder import RunFolder
lock = RunFolder(Path(sys.argv[1])).acquire_lock(); time.sleep(60)
"""


def test_a_missing_checkpoint_or_a_huge_image_is_refused(executor: LocalExecutor, home: Path) -> None:
    folder = make_run(home)
    with pytest.raises(Refused, match="has not started"):
        executor.predict(folder, 1, b"no image")
    with pytest.raises(Refused, match="too large"):
        executor.predict(folder, 1, bytes(wire.MAX_LINE))


def test_a_query_that_hangs_is_given_up(executor: LocalExecutor) -> None:
    with pytest.raises(ExecutorUnavailable, match="signal 9"):
        executor.devices()


def test_a_second_executor_shares_the_host(executor: LocalExecutor, home: Path) -> None:
    pid = host_pid(home)
    assert host_pid(home) == pid


def test_a_killed_host_is_noticed_and_replaced_while_its_run_goes_on(executor: LocalExecutor, home: Path) -> None:
    folder = make_run(home)
    executor.start(folder, 1, 1)
    first = host_pid(home)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not executor.ready())
    with pytest.raises(ExecutorUnavailable, match="is starting"):
        executor.describe(CNN, [1, 30, 30], 10)
    wait_for(executor.ready)
    assert executor.describe(CNN, [1, 30, 30], 10)["num_parameters"] > 0
    assert folder.is_alive()
    assert host_pid(home) != first
    stop(folder)


def test_a_host_that_dies_at_once_is_not_started_in_a_loop(tmp_path: Path) -> None:
    dying = [sys.executable, "-c", "import sys; print('one more', flush=True); sys.exit('No module named torch.')"]
    executor = LocalExecutor(tmp_path, command=dying)

    def reason() -> str:
        try:
            executor.ensure_host()
        except ExecutorUnavailable as problem:
            return str(problem)
        return ""

    sentence = wait_for(reason)
    assert sentence.startswith("The trainer ended immediately: No module named torch. It will be restarted soon; see ")
    for _ in range(20):
        assert reason()
        assert not executor.ready()
    assert wire.log_path(tmp_path).read_text().count("one more") == 1


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path, command=["/nowhere/python"])
    with pytest.raises(ExecutorUnavailable, match="could not be started"):
        executor.ensure_host()


def test_a_hung_host_makes_no_call_wait_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.runs.executors.local.GREETING_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(wire.socket_path(tmp_path, wire.code_version())))
        silent.listen()
        executor = LocalExecutor(tmp_path, command=["/nowhere/python"])
        assert not executor.ready()


def test_it_never_imports_torch_or_numpy() -> None:
    program = "import sys, app.runs.executors.local; print({'torch', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
