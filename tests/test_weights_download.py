"""Fetching published weights from a server on this machine."""

import hashlib
import http.server
import socket
import threading

import pytest

from zoo.spec import Weights
from zoo.weights import fetch

CONTENT = bytes(range(256)) * 20_000  # about 5 MB: several chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requested.append(self.path)
        if self.path == "/missing.th":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path == "/pieces.th":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"ff\r\nonly the beginning")
            self.close_connection = True
            return
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.close_connection = True
        cut = self.path == "/cut.th"
        self.wfile.write(CONTENT[:1_500_000] if cut else CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requested = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)


def weights(server, file: str, sha256: str = DIGEST[:8]) -> Weights:
    url = f"http://127.0.0.1:{server.server_port}/{file}"
    return Weights("test", url, sha256, accuracy="", source="", licence="")


def files(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.quick
@pytest.mark.parametrize("digits", [8, 64])
def test_a_file_is_fetched_once_into_the_cache(server, tmp_path, digits):
    wanted = weights(server, "net%2D8.th?raw=1", DIGEST[:digits])
    path = fetch(wanted)
    assert path == tmp_path / "cache" / "net-8.th"
    assert path.read_bytes() == CONTENT
    assert fetch(wanted) == path
    assert len(server.requested) == 1
    assert files(path.parent) == ["net-8.th"]


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
    monkeypatch.delenv("ZOO_OFFLINE")
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
        ValueError, match=f"net.th has the hash {DIGEST}, expected 0000"
    ):
        fetch(weights(server, "net.th", "00000000"))
    assert files(tmp_path / "cache") == []


def test_weights_without_a_hash_are_refused(server):
    with pytest.raises(ValueError, match="sha256 needs 8 digits or more, got ''"):
        fetch(weights(server, "net.th", ""))
    assert server.requested == []


def test_a_cut_connection_is_an_error_and_leaves_nothing(server, tmp_path):
    with pytest.raises(ConnectionError, match="cut after 1500000 of 5120000 bytes"):
        fetch(weights(server, "cut.th"))
    assert files(tmp_path / "cache") == []


def test_a_broken_stream_is_an_error_and_leaves_nothing(server, tmp_path):
    with pytest.raises(ConnectionError, match=r"pieces\.th: the connection broke"):
        fetch(weights(server, "pieces.th"))
    assert files(tmp_path / "cache") == []


def test_a_missing_file_is_an_error_and_leaves_nothing(server, tmp_path):
    with pytest.raises(ConnectionError, match=r"missing\.th: HTTP 404, Not Found"):
        fetch(weights(server, "missing.th"))
    assert files(tmp_path / "cache") == []


def test_a_server_that_is_not_there_is_an_error(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/net.th"
        with pytest.raises(
            ConnectionError, match=r"net\.th cannot be reached: .*refus"
        ):
            fetch(Weights("test", url, DIGEST, accuracy="", source="", licence=""))
    assert files(tmp_path / "cache") == []
