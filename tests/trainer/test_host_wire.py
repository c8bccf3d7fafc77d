"""Where the host listens, and how its code's version is told."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from trainer import wire


def test_the_socket_is_in_home_where_its_path_fits(tmp_path: Path) -> None:
    path = wire.socket_path(Path("/srv/runoff"), "0" * 8)
    assert path == Path("/srv/runoff/host-00000000.sock")


def test_a_long_home_has_its_socket_in_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = tmp_path / ("long" * 25)
    path = wire.socket_path(home, "0" * 8)
    assert path != wire.socket_path(home / "other", "0" * 8)
    assert len(os.fsencode(path)) <= wire.LONGEST_SOCKET_PATH
    wire.check_socket_folder(home, path)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def test_a_folder_that_others_could_enter_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="private"):
        wire.check_socket_folder(tmp_path, folder / "host.sock")
    link = tmp_path / "link"
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    link.symlink_to(private)
    with pytest.raises(PermissionError, match="private"):
        wire.check_socket_folder(tmp_path, link / "host.sock")


def test_even_with_a_long_temporary_folder_the_path_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/" + "t" * 120)
    path = wire.socket_path(Path("/" + "h" * 120), "0" * 8)
    assert path.parent.parent == Path("/tmp")


def test_the_version_is_short_and_stable() -> None:
    assert wire.code_version() == wire.code_version()
    assert len(wire.code_version()) == 8


def test_this_process_is_this_user() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert wire.peer_is_this_user(one)
