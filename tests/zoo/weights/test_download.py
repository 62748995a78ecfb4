"""Fetching published weights from a server on this machine."""

import errno
import functools
import os
import shutil
import socket

import pytest
from weights_server import CONTENT, CUT, DIGEST, files, only_part, serve, weights

from zoo.spec import Weights
from zoo.weights import fetch as fetch_patiently

fetch = functools.partial(fetch_patiently, pause_seconds=0)


@pytest.fixture
def server():
    with serve() as server:
        yield server


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)


@pytest.mark.parametrize("digits", [8, 64])
def test_a_file_is_fetched_once_into_the_cache(server, tmp_path, digits, caplog):
    wanted = weights(server, "net%2D8.th?raw=1", DIGEST[:digits])
    path = fetch(wanted)
    assert path == tmp_path / "cache" / "net-8.th"
    assert path.read_bytes() == CONTENT
    # What it is, how much, from where, and where it stays.
    assert f"fetching {path} (5.1 MB) from {wanted.url}." in caplog.text
    assert fetch(wanted) == path
    assert len(server.requested) == 1
    assert os.listdir(path.parent) == ["net-8.th"]


def test_the_cache_may_call_a_file_by_another_name(server, tmp_path):
    url = f"http://127.0.0.1:{server.server_port}/model.th"
    wanted = Weights("test", url, DIGEST, "", "", "", file="net-8.th")
    assert fetch(wanted) == tmp_path / "cache" / "net-8.th"


def test_cache_dir_goes_before_the_environment(server, tmp_path):
    path = fetch(weights(server, "net.th"), cache_dir=tmp_path / "mine")
    assert path == tmp_path / "mine" / "net.th"
    assert files(tmp_path / "cache") == []


def test_without_a_setting_the_cache_is_in_the_home_folder(
    server, tmp_path, monkeypatch
):
    monkeypatch.delenv("ZOO_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = fetch(weights(server, "net.th"))
    assert path == tmp_path / ".cache" / "canon-zoo" / "weights" / "net.th"


def test_offline_only_what_is_there_is_found(server, tmp_path, monkeypatch):
    wanted = weights(server, "net.th")
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"net\.th .*ZOO_OFFLINE=1.*http://"):
        fetch(wanted)
    assert server.requested == []
    monkeypatch.setenv("ZOO_OFFLINE", "0")
    path = fetch(wanted)
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    assert fetch(wanted) == path


def test_a_damaged_file_in_the_cache_is_fetched_again(server, caplog):
    wanted = weights(server, "net.th")
    path = fetch(wanted)
    path.write_bytes(CONTENT[:-1])
    assert fetch(wanted).read_bytes() == CONTENT
    assert len(server.requested) == 2
    assert "is not the file that was published" in caplog.text


def test_another_hash_is_an_error_and_leaves_nothing(server, tmp_path):
    with pytest.raises(
        ValueError, match=rf"net\.th has the hash {DIGEST}, expected 0000"
    ):
        fetch(weights(server, "net.th", "00000000"))
    assert files(tmp_path / "cache") == []


def test_weights_without_a_hash_are_refused(server):
    with pytest.raises(ValueError, match="sha256 needs 8 digits or more, got ''"):
        fetch(weights(server, "net.th", ""))
    assert server.requested == []


def test_a_cut_download_goes_on_where_it_ended(server, tmp_path, caplog):
    path = fetch(weights(server, "ranges-cut.th"))
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in server.requested] == ["", f"bytes={CUT}-"]
    assert server.sent == len(CONTENT)
    assert f"cut after {CUT} of 5120000 bytes. Trying again in" in caplog.text
    assert f"from byte {CUT} on" in caplog.text
    assert files(tmp_path / "cache") == ["ranges-cut.th"]


def test_a_later_call_goes_on_with_what_an_earlier_one_kept(server, tmp_path):
    wanted = weights(server, "ranges-cut.th")
    with pytest.raises(ConnectionError, match=r"The first 1\.5 MB are kept; call agai"):
        fetch(wanted, attempts=1)
    assert only_part(tmp_path / "cache").read_bytes() == CONTENT[:CUT]
    # The same name with another hash is another file: it does not take this part.
    with pytest.raises(ValueError, match="expected 11111111"):
        fetch(weights(server, "ranges-cut.th", "11111111"))
    assert fetch(wanted).read_bytes() == CONTENT
    assert [asked for _, asked in server.requested] == ["", "", f"bytes={CUT}-"]
    assert files(tmp_path / "cache") == ["ranges-cut.th"]


@pytest.mark.parametrize("name", ["cut.th", "cut-impossible.th", "ranges-shifted-cut"])
def test_where_a_server_cannot_go_on_the_download_starts_again(server, tmp_path, name):
    assert fetch(weights(server, name)).read_bytes() == CONTENT
    assert server.requested[1] == (f"/{name}", f"bytes={CUT}-")
    # Without ranges the second answer is the whole; an answer of no use needs a third.
    assert len(server.requested) == (2 if name == "cut.th" else 3)
    assert files(tmp_path / "cache") == [name]


def test_a_part_that_is_not_the_files_beginning_is_found_and_removed(server, tmp_path):
    wanted = weights(server, "ranges-cut.th")
    with pytest.raises(ConnectionError):
        fetch(wanted, attempts=1)
    only_part(tmp_path / "cache").write_bytes(b"x" * CUT)
    with pytest.raises(ValueError, match="the download was removed"):
        fetch(wanted)
    assert fetch(wanted).read_bytes() == CONTENT


def test_a_server_that_cuts_each_time_is_an_error(server, tmp_path):
    with pytest.raises(ConnectionError, match="cut after 1500000 of 5120000 bytes"):
        fetch(weights(server, "cut-always.th"))
    assert len(server.requested) == 4
    assert len(files(tmp_path / "cache")) == 1


def test_a_broken_stream_is_an_error(server, tmp_path):
    with pytest.raises(ConnectionError, match=r"pieces\.th: the connection broke"):
        fetch(weights(server, "pieces.th"))
    assert len(server.requested) == 4


def test_a_server_that_is_busy_is_asked_again(server, caplog):
    assert fetch(weights(server, "busy.th")).read_bytes() == CONTENT
    assert "HTTP 503, Service Unavailable. Trying again" in caplog.text


def test_a_missing_file_is_an_error_at_once_and_leaves_nothing(server, tmp_path):
    with pytest.raises(ConnectionError, match=r"missing\.th: HTTP 404, Not Found"):
        fetch(weights(server, "missing.th"))
    assert len(server.requested) == 1
    assert files(tmp_path / "cache") == []


def test_a_server_that_is_not_there_is_an_error_at_once(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/net.th"
        with pytest.raises(
            ConnectionError,
            match=r"net\.th cannot be reached: .*refus.* as .*cache/net\.th no connec",
        ):
            fetch(Weights("test", url, DIGEST, accuracy="", source="", licence=""))
    assert files(tmp_path / "cache") == []


def test_too_little_space_is_an_error_before_anything_is_written(
    server, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    words = r"No space left on device, 5\.1 MB are needed, 2\.0 MB free; .*ZOO_CACHE"
    with pytest.raises(OSError, match=words) as caught:
        fetch(weights(server, "net.th"))
    assert caught.value.errno == errno.ENOSPC
    assert files(tmp_path / "cache") == []


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "cache").write_text("in the folder's place")
    with pytest.raises(OSError, match=r"cache/net\.th cannot be written: .*ZOO_CACHE"):
        fetch(weights(server, "net.th"))
    assert server.requested == []
