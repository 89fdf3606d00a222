"""A real browser for tests of pages: headless Chromium over its debugging pipe, no package needed.

`BLIP_FAST_BROWSER` names the program where it is not one of those that are looked for.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip

# Chromium reads commands from descriptor 3 and answers on 4.
_START = """
import fcntl, os, sys
pair = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for number, descriptor in zip((3, 4), pair):
    os.dup2(descriptor, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


_BEYOND = """[...document.querySelectorAll("body *")].filter((node) => {
  const box = node.getBoundingClientRect();
  if (!box.width || (box.left > -1 && box.right < innerWidth + 1)) return false;
  for (let around = node.parentElement; around; around = around.parentElement) {
    if (getComputedStyle(around).overflowX !== "visible") return false;
  }
  return true;
}).map((node) => `${node.tagName} ${node.className}: ${node.textContent.slice(0, 60)}`)"""


def find_browser() -> str | None:
    """The path of a Chromium, None where there is none."""
    names = [os.environ["BLIP_FAST_BROWSER"]] if "BLIP_FAST_BROWSER" in os.environ else _NAMES
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """A browser with one tab; a context manager."""

    def __init__(self, program: str) -> None:
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs, self._out = os.pipe()
        self._in, answers = os.pipe()
        flags = (*_FLAGS, f"--user-data-dir={self._home.name}")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs), str(answers), program, *flags],
            pass_fds=(theirs, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(answers)
        self._left, self._number, self._session = b"", 0, ""
        self.requests: list[str] = []  # of the last page, its own file aside
        self.errors: list[str] = []  # of the last page: scripts, console, its policy
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = session["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = ""
        self.call("Browser.close")
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._home.cleanup()

    def open(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False) -> float:
        """Load a file of this machine in a window of a size; seconds until it was loaded."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests, self.errors, self._loaded = [], [], False
        started = time.perf_counter()
        self.call("Page.navigate", url=page.absolute().as_uri())
        while not self._loaded:
            self._event(self._message())
        seconds = time.perf_counter() - started
        self.requests = [url for url in self.requests if url != page.absolute().as_uri()]
        return seconds

    def run(self, script: str) -> Any:
        """The value of an expression in the page, a promise's when it is kept."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def beyond(self) -> list[str]:
        """The elements that reach out of the window to the left or right, but for those that
        something scrolls or cuts."""
        return self.run(_BEYOND)

    def press(self, key: str, code: int, text: str = "") -> None:
        """One key, as a person presses it; `code` is its number in Windows."""
        for kind in ("keyDown", "keyUp"):
            named = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, **named, **typed)

    def picture(self, path: Path, whole: bool = False) -> None:
        """What the window shows, or the whole page, as PNG."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._event(answer)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            part = os.read(self._in, 2**20)
            assert part, "the browser has ended"
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def _event(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith("data:"):
                self.requests.append(url)
        elif method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["text"])
        elif method == "Log.entryAdded":
            self.errors.append(params["entry"]["text"])
