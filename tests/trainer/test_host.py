"""The trainer host as a real process: starts, answers, faults. What its runs do is played (see ``fake_host.py``)."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trainer import wire
from trainer.config import RunConfig
from trainer.run_folder import RunFolder

pytestmark = pytest.mark.slow

FAKE_HOST = Path(__file__).with_name("fake_host.py")
CNN = {"dataset": "mnist", "model": "cnn"}


def wait_for(condition: Callable[[], Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    return value


class Client:
    """A connection to the host; ``ask`` sends one request and returns its answer."""

    def __init__(self, home: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        try:
            self.socket.connect(str(wire.socket_path(home, wire.code_version())))
        except OSError:
            self.socket.close()
            raise
        self.file = self.socket.makefile("rwb")
        self.greeting = self.read()

    def read(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.file.readline())
        return message

    def send(self, data: bytes) -> None:
        self.file.write(data)
        self.file.flush()

    def ask(self, request: wire.Request) -> dict[str, Any]:
        self.send(request.model_dump_json().encode() + b"\n")
        return self.read()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *problem: object) -> None:
        self.file.close()
        self.socket.close()


@dataclass
class RunningHost:
    home: Path
    process: subprocess.Popen[bytes]

    def client(self) -> Client:
        return Client(self.home)

    def run(self, behaviour: str) -> RunFolder:
        folder = RunFolder.create(self.home / "runs", RunConfig(dataset="mnist", model="cnn"))
        (folder.path / "behaviour").write_text(behaviour)
        return folder


def launch(home: Path, *options: str) -> RunningHost:
    command = [sys.executable, str(FAKE_HOST), "--home", str(home), *options]
    environment = {**os.environ, "RUNOFF_TOKEN": "secret"}
    with wire.log_path(home).open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    return RunningHost(home, process)


def wait_until_it_serves(running: RunningHost) -> None:
    def serves() -> bool:
        assert running.process.poll() is None, wire.log_path(running.home).read_text()
        try:
            with running.client():
                return True
        except OSError:
            return False

    wait_for(serves)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHost]:
    running = launch(tmp_path_factory.mktemp("home"))
    wait_until_it_serves(running)
    yield running
    running.process.terminate()
    assert running.process.wait(10) == 0


def start(folder: RunFolder) -> wire.Start:
    return wire.Start(id=7, folder=folder.path, attempt=1, num_threads=2, device="cpu")


def stop(folder: RunFolder) -> None:
    folder.request_stop()
    wait_for(lambda: not folder.is_alive())


def num_threads(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("Threads:")))


def test_it_greets_with_its_version(host: RunningHost) -> None:
    with host.client() as client:
        assert client.greeting == {
            "protocol": wire.PROTOCOL,
            "version": wire.code_version(),
            "pid": host.process.pid,
        }


def test_only_its_user_may_connect(host: RunningHost) -> None:
    mode = wire.socket_path(host.home, wire.code_version()).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_it_describes_and_starts_no_thread_itself(host: RunningHost) -> None:
    with host.client() as client:
        for size in (28, 29, 28):
            request = wire.Describe(id=size, config=CNN, image_shape=[1, size, size], num_classes=10)
            answer = client.ask(request)
            assert answer["id"] == size
            assert answer["result"]["layers"][0]["name"] == "Conv 5 × 5, ReLU"
        assert num_threads(host.process.pid) == 1


def test_a_wrong_config_is_refused_with_a_sentence(host: RunningHost) -> None:
    with host.client() as client:
        answer = client.ask(wire.Describe(config={"model": "tree"}, image_shape=[1, 28, 28], num_classes=10))
        assert answer["error"]["kind"] == "invalid"
        assert "model" in answer["error"]["message"]


def test_a_run_is_started_with_its_lock_held_and_nothing_of_the_host(host: RunningHost) -> None:
    folder = host.run("trains until stopped")
    with host.client() as other, host.client() as client:
        answer = client.ask(start(folder))
        assert folder.is_alive()
        facts = json.loads((folder.path / "facts.json").read_text())
        stop(folder)
        assert other.greeting
    assert answer == {"id": 7, "result": {"pid": facts["pid"]}}
    assert facts["session"] == facts["pid"]
    assert (facts["attempt"], facts["num_threads"], facts["device"]) == (1, 2, "cpu")
    assert (facts["home"], facts["token"], facts["oom"]) == (str(host.home), None, "500")
    assert facts["sigterm"] == "0"  # the default
    names = [name for name in facts["open_files"] if not name.startswith("pipe:")]
    assert names == [str(folder.lock_path)]
    assert len(facts["open_files"]) == 2
    assert wait_for(lambda: folder.read_exit(1))["code"] == 0
    assert folder.log_path.read_text() == "training\n"


def test_starting_a_run_twice_starts_it_once(host: RunningHost) -> None:
    folder = host.run("trains until stopped")
    with host.client() as client:
        assert client.ask(start(folder)) == client.ask(start(folder))
    stop(folder)


@pytest.mark.parametrize(("behaviour", "code"), [("ends before the lock", 3)])
def test_a_run_that_ends_at_once_is_said_to(host: RunningHost, behaviour: str, code: int) -> None:
    folder = host.run(behaviour)
    with host.client() as client:
        error = client.ask(start(folder))["error"]
    assert error == {"kind": "not started", "message": f"The run's process ended with exit status {code}."}
    assert (folder.read_exit(1) or {})["code"] == code


def test_an_exception_in_a_run_is_in_its_log(host: RunningHost) -> None:
    folder = host.run("raises")
    with host.client() as client:
        assert "result" in client.ask(start(folder))
    assert wait_for(lambda: folder.read_exit(1))["code"] == 1
    assert "RuntimeError: played" in folder.log_path.read_text()


def test_a_killed_run_leaves_its_signal(host: RunningHost) -> None:
    folder = host.run("trains until stopped")
    with host.client() as client:
        os.kill(client.ask(start(folder))["result"]["pid"], signal.SIGKILL)
    found = wait_for(lambda: (ending := folder.read_exit(1)) and "memory" in ending and ending)
    assert (found["code"], found["signal"]) == (0, signal.SIGKILL)
    memory = found["memory"]
    assert 10**6 < memory["peak_bytes"] < memory["total_bytes"]
    assert 0 < memory["available_bytes_before"] < memory["total_bytes"]
    assert memory["oom_kills"] >= memory["oom_kills_before"] >= 0
    assert not folder.is_alive()


def test_a_missing_folder_is_refused(host: RunningHost) -> None:
    with host.client() as client:
        assert client.ask(start(RunFolder(host.home / "nowhere")))["error"]["kind"] == "invalid"


def test_a_query_that_hangs_is_ended(host: RunningHost) -> None:
    with host.client() as client:
        error = client.ask(wire.Devices())["error"]
    assert error == {"kind": "unavailable", "message": "The process for this request was ended by signal 9."}


def measure() -> wire.Measure:
    return wire.Measure(
        id=9,
        section="matmul",
        key="a",
        config=CNN,
        image_shape=[1, 28, 28],
        num_classes=10,
        num_threads=1,
        device="cpu",
    )


def measuring_pid(host: RunningHost, client: Client) -> int:
    """Have something measured; the process that does it."""
    path = host.home / "measuring"
    path.unlink(missing_ok=True)
    client.send(measure().model_dump_json().encode() + b"\n")
    wait_for(lambda: path.exists() and path.read_text())
    return int(path.read_text())


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_measurement_is_ended_when_a_run_starts_and_refused_while_it_is_on(host: RunningHost) -> None:
    folder = host.run("trains until stopped")
    interrupted = {"kind": "interrupted", "message": "Nothing is measured while a run is in progress."}
    with host.client() as asker, host.client() as client:
        pid = measuring_pid(host, asker)
        assert "result" in client.ask(wire.Describe(config=CNN, image_shape=[1, 20, 20], num_classes=10))
        assert not is_gone(pid)
        begin = time.monotonic()
        assert "result" in client.ask(start(folder))
        assert time.monotonic() - begin < 5
        assert asker.read() == {"id": 9, "error": interrupted}
        assert is_gone(pid)
        assert client.ask(measure()) == {"id": 9, "error": interrupted}
        stop(folder)
        wait_for(lambda: folder.read_exit(1))
        os.kill(measuring_pid(host, client), signal.SIGKILL)
        assert client.read()["error"]["kind"] == "unavailable"


def test_a_measurement_makes_room_for_others(host: RunningHost) -> None:
    with host.client() as client:
        pid = measuring_pid(host, client)
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"
        assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, host.process.pid) or (
            os.getpriority(os.PRIO_PROCESS, host.process.pid) >= 10
        )
    wait_for(lambda: is_gone(pid))  # nobody waits for it any more


def test_a_host_that_ends_leaves_no_measurement(tmp_path: Path) -> None:
    running = launch(tmp_path)
    wait_until_it_serves(running)
    with running.client() as asker, running.client() as client:
        pid = measuring_pid(running, asker)
        assert client.ask(wire.End())["result"] == {"ending": True}
        assert running.process.wait(10) == 0
    wait_for(lambda: is_gone(pid))


def test_an_image_that_is_none_is_refused(host: RunningHost) -> None:
    folder = host.run("raises")
    with host.client() as client:
        error = client.ask(wire.Predict(folder=folder.path, epoch=1, image=b"bm90IGEgUE5H"))["error"]
    assert error["kind"] == "invalid"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"what?",
        b"[]",
        b"null",
        b'{"command":"dance"}',
        b'{"command":"start"}',
        b"\xff\xfe",
        b"[" * 5000,
        b'{"command":"start","folder":"/tmp","attempt":0,"num_threads":1}',
        b'{"command":"start","folder":"/tmp","attempt":"1","num_threads":1}',
    ],
)
def test_what_is_not_a_request_is_answered_with_an_error(host: RunningHost, line: bytes) -> None:
    with host.client() as client:
        client.send(line + b"\n")
        assert client.read()["error"]["kind"] == "bad request"


def test_clients_that_misbehave_do_not_disturb_others(host: RunningHost) -> None:
    with host.client() as half, host.client() as good:
        half.send(b'{"command":"desc')
        half.socket.shutdown(socket.SHUT_RDWR)
        assert "result" in good.ask(wire.Describe(config=CNN, image_shape=[1, 28, 28], num_classes=10))


def test_an_endless_line_is_cut_off(host: RunningHost) -> None:
    with host.client() as client, pytest.raises(OSError, match=r"Broken pipe|reset"):
        client.socket.sendall(b"x" * 3 * wire.MAX_LINE)
    with host.client() as client:
        assert client.greeting


def test_a_client_that_never_reads_is_dropped(host: RunningHost) -> None:
    with host.client() as client, pytest.raises(OSError, match=r"Broken pipe|reset"):
        client.socket.sendall(b"what?\n" * 1_000_000)
    with host.client() as client:
        assert client.greeting


def test_a_second_host_ends_quietly(host: RunningHost) -> None:
    second = launch(host.home)
    assert second.process.wait(20) == 0
    with host.client() as client:
        assert client.greeting["pid"] == host.process.pid


def test_a_run_outlives_its_killed_host_and_the_next_one_serves(tmp_path: Path) -> None:
    first = launch(tmp_path)
    wait_until_it_serves(first)
    folder = first.run("trains until stopped")
    with first.client() as client:
        client.ask(start(folder))
    first.process.kill()
    first.process.wait(10)
    assert folder.is_alive()
    second = launch(tmp_path, "--idle-seconds", "1")
    wait_until_it_serves(second)  # in place of the socket that was left
    assert folder.is_alive()
    assert second.process.wait(20) == 0  # idle: the other host's run does not keep it
    assert not wire.socket_path(tmp_path, wire.code_version()).exists()
    stop(folder)
    assert folder.read_exit(1) is None
