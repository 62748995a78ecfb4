"""A server of weights on this machine, which does what servers do when they fail."""

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator

from zoo.spec import Weights

CONTENT = bytes(range(256)) * 20_000  # about 5 MB: several chunks
CUT = 1_500_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT under any name; the name's words say what is wrong with it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        asked = self.headers.get("Range", "")
        self.server.requested.append((self.path, asked))
        again = sum(path == self.path for path, _ in self.server.requested) > 1
        self.close_connection = True
        if "missing" in self.path:
            return self.send_error(404)
        if "busy" in self.path and not again:
            return self.send_error(503)
        if "impossible" in self.path and asked:
            return self.send_error(416)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if "ranges" not in self.path:
            start = 0
        self.send_response(206 if start else 200)
        if start:
            first = start - 1 if "shifted" in self.path else start
            total = len(CONTENT)
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        if "pieces" in self.path:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            return self.wfile.write(b"ff\r\nonly the beginning")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        rest = CONTENT[start:]
        if "cut" in self.path and (not again or "always" in self.path):
            rest = rest[:CUT]
        if "slow" in self.path and not again:
            self.wfile.write(rest[:CUT])
            self.server.go_on.wait(30)
            rest = rest[CUT:]
        self.server.sent += len(rest)
        with contextlib.suppress(ConnectionError):  # The fetcher may have gone.
            self.wfile.write(rest)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve() -> Iterator[http.server.ThreadingHTTPServer]:
    """Runs a server; it notes what was requested, and how many bytes it sent."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requested, server.sent, server.go_on = [], 0, threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


def weights(server, file: str, sha256: str = DIGEST[:8]) -> Weights:
    url = f"http://127.0.0.1:{server.server_port}/{file}"
    return Weights("test", url, sha256, accuracy="", source="", licence="")


def files(folder) -> list[str]:
    """Lists a folder without locks, which are empty."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    locks = [path for path in found if path.suffix == ".lock"]
    assert all(path.stat().st_size == 0 for path in locks)
    return [path.name for path in found if path not in locks]


def only_part(folder):
    (part,) = folder.glob("*.part")
    return part
