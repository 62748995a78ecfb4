"""Servers and files that go beyond what is sensible; homes that do not exist."""

import contextlib
import http.server
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import zoo
from zoo.spec import Card, Weights
from zoo.weights import fetch, load, load_safetensors, save_safetensors
from zoo.weights.checksums import check_checksums, write_checksums

NAME = "lenet5_modern"
SHA = "0123456789abcdef"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.close_connection = True
        length, body, code = "10", b"0123456789", 200
        location = None
        if "length" in self.path:
            length = {"abc": "abc", "minus": "-5", "huge": "9" * 30}[self.path[8:]]
        if "declared" in self.path:
            length = str(10**9)
        if "redirect" in self.path:
            code, location = 302, self.path[10:]
        self.send_response(code)
        if location:
            self.send_header("Location", location)
        if "chunk" in self.path:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"-5\r\nabcde\r\n0\r\n\r\n"
        elif "endless" not in self.path and "trickle" not in self.path:
            self.send_header("Content-Length", length)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            while "endless" in self.path:
                self.wfile.write(bytes(1 << 16))
            while "trickle" in self.path and not self.server.stop.wait(0.05):
                self.wfile.write(b"x")
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.stop = threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield lambda path: Weights(
            "w", f"http://127.0.0.1:{server.server_port}/{path}", SHA, "", "", ""
        )
        server.stop.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["length/abc", "length/minus", "length/huge", "chunk"])
def test_odd_headers_end_in_words(server, path):
    with pytest.raises((ConnectionError, ValueError), match=r"http://127"):
        fetch(server(path), max_bytes=1000, pause_seconds=0)


@pytest.mark.parametrize("path", ["endless", "declared"])
def test_a_file_that_is_too_large_is_not_kept(server, path, tmp_path):
    with pytest.raises(ConnectionError, match=r"at most 0\.3 MB: it is another file"):
        fetch(server(path), max_bytes=300_000)
    kept = [p.name for p in (tmp_path / "cache").iterdir()]
    assert not [name for name in kept if "part" in name]


def test_a_server_that_stalls_is_left(server):
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"stalled, \d+ bytes in 0\.3 s"):
        fetch(server("trickle"), attempts=1, timeout_seconds=0.3)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/hostname"])
def test_redirects_stay_in_the_web(server, target):
    with pytest.raises(ConnectionError, match=r"http"):
        fetch(server(f"redirect/{target}"))


def test_offline_says_that_a_file_is_damaged_and_not_that_it_fetches(
    server, monkeypatch, caplog
):
    weights = server("x.th")
    path = zoo.weights.cache_path(weights)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"is damaged or another file, and ZOO"):
        fetch(weights)
    assert "fetching" not in caplog.text


def test_no_home_is_said(monkeypatch):
    def nobody(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ZOO_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)  # As for a user without an entry.
    with pytest.raises(ValueError, match=r"has no home folder; .*ZOO_CACHE"):
        zoo.weights.cache_path(Weights("w", "http://x/y", SHA, "", "", ""))


@pytest.fixture(scope="module")
def arrays() -> dict:
    return zoo.weights.to_torch(NAME, zoo.create(NAME, num_classes=3)[1])


def write(path, arrays, change, **metadata):
    values = Card(NAME, 3, {}, zoo.get_spec(NAME).preprocess).to_json()
    change(values)
    text = {"zoo": json.dumps(values), **metadata}
    safetensors.numpy.save_file(arrays, path, text)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(num_classes="3"),
        lambda v: v.update(num_classes=10**9),
        lambda v: v.update(num_classes=9_999_999),
        lambda v: v.update(num_classes=-1),
        lambda v: v.update(num_classes=True),
        lambda v: v.update(overrides=[["init", 3]]),
        lambda v: v.update(overrides={"init": {"a": []}}),
        lambda v: v.update(overrides={"dtype": "float99"}),
        lambda v: v.update(overrides={"nothing": 1}),
        lambda v: v.update(class_names="abc"),
        lambda v: v.update(class_names=[1, 2, 3]),
        lambda v: v.update(model=None),
        lambda v: v.update(model=["x"]),
        lambda v: v.update(preprocess=None),
        lambda v: v.update(preprocess=[]),
        lambda v: v["preprocess"].update(size="28"),
        lambda v: v["preprocess"].update(size=-1),
        lambda v: v["preprocess"].update(mean=[float("nan")]),
        lambda v: v["preprocess"].update(std=["0.5"]),
        lambda v: v["preprocess"].update(fit=3),
        lambda v: v.update(versions={"a": 1}),
        lambda v: v.clear(),
    ],
)
def test_cards_of_wrong_types_are_said(tmp_path, arrays, change):
    path = write(tmp_path / "net.safetensors", arrays, change)
    with pytest.raises(ValueError, match=r"net\.safetensors|unknown model|no model"):
        load(NAME, path)


def test_names_that_are_arrays_and_folders_are_said(tmp_path):
    x = np.zeros(2, np.float32)
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file({"params/a": x, "params/a/b": x}, path)
    for read in (load_safetensors, lambda p: load(NAME, p)):
        with pytest.raises(ValueError, match="'params/a' is an array and holds"):
            read(path)


def test_types_that_numpy_lacks_are_said(tmp_path, arrays):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {k: torch.tensor(v) for k, v in arrays.items()}
    tensors["conv1.weight"] = tensors["conv1.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"net\.safetensors"):
        load(NAME, tmp_path / "net.safetensors")


def test_flipped_bits_of_a_saved_file_are_noticed(tmp_path):
    variables = zoo.create(NAME, num_classes=3)[1]
    card = Card(NAME, 3, {}, zoo.get_spec(NAME).preprocess)
    path = tmp_path / "net.safetensors"
    for layout in ("zoo", "torch"):
        save_safetensors(path, variables, card, layout=layout)
        whole = path.read_bytes()
        load(NAME, path)
        for place in (len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="is not as it was written"):
                load(NAME, path)


def test_checksums_notice_what_changes_and_name_it(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").write_bytes(b"123")
    (tmp_path / "a" / "y").write_bytes(b"")
    assert not check_checksums(tmp_path / "a")
    write_checksums(tmp_path / "a")
    assert check_checksums(tmp_path / "a")
    (tmp_path / "a" / "b" / "x").write_bytes(b"122")
    with pytest.raises(ValueError, match="b/x is not as it was written"):
        check_checksums(tmp_path / "a")
    (tmp_path / "a" / "b" / "x").unlink()
    with pytest.raises(ValueError, match="b/x is missing"):
        check_checksums(tmp_path / "a")
    sums = tmp_path / "a" / "checksums.json"
    sums.write_text(sums.read_text().replace("y", "z"))
    with pytest.raises(ValueError, match=r"checksums\.json is not as it was written"):
        check_checksums(tmp_path / "a")
