"""Fetching of weights by processes that fail, are killed, or want the same file."""

import os
import subprocess
import sys
import threading
import time

import pytest
from weights_server import CONTENT, files, serve, weights

from zoo.spec import Weights
from zoo.weights import fetch

# Lets no file of a process become larger, as a full disk would.
LIMIT = (
    "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
)
# A process that fetches what it is told to.
FETCH = (
    "import sys; from zoo.spec import Weights; from zoo.weights import fetch\n"
    "print(fetch(Weights('test', *sys.argv[1:], accuracy='', source='', licence='')))"
)


@pytest.fixture
def server():
    with serve() as server:
        yield server


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)


def start_fetch(wanted: Weights, before: str = "") -> subprocess.Popen:
    command = [sys.executable, "-c", before + FETCH, wanted.url, wanted.sha256]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def test_a_disk_that_becomes_full_is_an_error_and_leaves_nothing(server, tmp_path):
    with start_fetch(weights(server, "ranges.th"), before=LIMIT) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ranges.th cannot be written: File too large; nothing of it is left" in err
    assert "ZOO_CACHE names another folder" in err
    assert files(tmp_path / "cache") == []


def wait_for_part(folder, process) -> None:
    for _ in range(600):
        parts = [*folder.glob("*.part")]
        if parts and parts[0].stat().st_size >= 1 << 20:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("the process has not begun to download")


def test_what_a_killed_process_had_is_taken_up(server, tmp_path):
    wanted = weights(server, "ranges-slow.th")
    with start_fetch(wanted) as process:
        wait_for_part(tmp_path / "cache", process)
        process.kill()
    assert fetch(wanted).read_bytes() == CONTENT
    (_, asked) = server.requested[-1]
    assert asked.startswith("bytes=1")
    assert os.listdir(tmp_path / "cache") == ["ranges-slow.th"]


def test_a_process_killed_after_the_last_byte_has_nothing_to_fetch(
    server, tmp_path, monkeypatch
):
    def killed(*paths):
        raise KeyboardInterrupt

    wanted = weights(server, "ranges.th")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(wanted)
    assert fetch(wanted).read_bytes() == CONTENT
    assert len(server.requested) == 1


def test_two_processes_that_want_the_same_file_fetch_it_once(server, tmp_path, caplog):
    wanted = weights(server, "ranges-slow.th")
    with start_fetch(wanted) as process:
        wait_for_part(tmp_path / "cache", process)
        found = []
        thread = threading.Thread(target=lambda: found.append(fetch(wanted)))
        thread.start()
        while "waiting for another process that fetches" not in caplog.text:
            time.sleep(0.01)
        server.go_on.set()
        thread.join()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert [out.strip()] == [str(path) for path in found]
    assert found[0].read_bytes() == CONTENT
    assert len(server.requested) == 1
    assert os.listdir(tmp_path / "cache") == ["ranges-slow.th"]
