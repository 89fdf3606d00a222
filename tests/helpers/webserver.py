"""A web server of this machine that can be told to fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """What a server holds, and what was asked of it.

    Attributes:
        files: by path, with its slash.
        failing: by path, the answers that come before the file: numbers of HTTP, or 0 for a
            connection that is closed without a word. GET uses one up, HEAD looks at it.
        asked: paths, in order; of GET alone. What follows a question mark does not count.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.failing: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self.url = ""

    def put(self, path: str, data: bytes, failing: tuple[int, ...] = ()) -> str:
        """Offer a file; its URL."""
        self.files[path], self.failing[path] = data, list(failing)
        return self.url + path


@contextmanager
def serving() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            site.asked.append(path)
            data, failing = site.files.get(path), site.failing.get(path)
            if failing:
                status = failing.pop(0)
                if status:
                    self.send_error(status)
                self.close_connection = True
            elif data is None:
                self.send_error(404)
            else:
                self._head(data)
                self.wfile.write(data)

        def do_HEAD(self) -> None:
            path = self.path.partition("?")[0]
            data, failing = site.files.get(path), site.failing.get(path)
            if failing or data is None:
                if status := failing[0] if failing else 404:
                    self.send_error(status)
                self.close_connection = True
            else:
                self._head(data)

        def _head(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
