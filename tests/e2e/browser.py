"""A headless Chromium that is told what to do over its own protocol, by the standard library."""

import base64
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MAY_INSTALL = "FASTDLRM_MAY_INSTALL"
WAIT_S = 30.0


def browser_path() -> str:
    """The browser; where there is none it is installed, if FASTDLRM_MAY_INSTALL=1, else skipped."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and os.environ.get(MAY_INSTALL) == "1" and shutil.which("apt-get"):
        install = ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]
        subprocess.run(install, check=True, capture_output=True)
        found = shutil.which("chromium")
    if found is None:
        pytest.skip(
            f"no browser: none of {', '.join(BROWSERS)} is on the path (apt-get install chromium, "
            f"or set {MAY_INSTALL}=1)"
        )
    return found


class WebSocket:
    """A client's end of a WebSocket: text frames, both ways."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._socket = socket.create_connection((host, port), timeout=WAIT_S)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        status = self._stream.readline()
        assert b" 101 " in status, status
        while self._stream.readline().strip():
            pass

    def send(self, text: str) -> None:
        """Send one text."""
        data = text.encode()
        size = len(data)
        if size < 126:
            head = struct.pack("!BB", 0x81, 0x80 | size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x81, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x81, 0x80 | 127, size)
        self._socket.sendall(head + bytes(4) + data)  # a mask of zeros

    def receive(self) -> str:
        """The next text."""
        whole = b""
        while True:
            first, second = self._stream.read(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", self._stream.read(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", self._stream.read(8))
            data = self._stream.read(size)
            assert first & 0x0F != 8, "the browser closed the connection"
            if first & 0x0F in (0, 1):
                whole += data
                if first & 0x80:
                    return whole.decode()

    def close(self) -> None:
        """Close it."""
        self._stream.close()
        self._socket.close()


class Page:
    """One tab.

    Attributes:
        complaints: Errors that the page wrote to its console or threw, and requests that failed.
    """

    def __init__(self, connection: WebSocket) -> None:
        self.complaints: list[str] = []
        self._connection = connection
        self._number = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        self._number += 1
        call = {"id": self._number, "method": method, "params": parameters}
        self._connection.send(json.dumps(call))
        while True:
            message = json.loads(self._connection.receive())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def open(self, url: str) -> None:
        """Go to a page and wait for it."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str) -> Any:
        """An expression's value."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, within_s: float = WAIT_S) -> Any:
        """An expression's value, once it is true."""
        until = time.monotonic() + within_s
        while not (found := self.value(expression)):
            assert time.monotonic() < until, f"{expression}\n{self.complaints}"
            time.sleep(0.05)
        return found

    def text(self, selector: str) -> str:
        """What a reader sees of an element."""
        return self.value(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector: str) -> None:
        """Click an element."""
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def look(self, width: int = 1280, height: int = 1000, *, dark: bool = False) -> None:
        """Set the window's size and the colours that the reader likes."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = "dark" if dark else "light"
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def screenshot(self, path: Path, height: int | None = None) -> None:
        """Write a picture of the whole page, or of its first `height` pixels."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        tall = size["height"] if height is None else min(height, size["height"])
        clip = {"x": 0, "y": 0, "width": size["width"], "height": tall, "scale": 1}
        found = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        method, found = message["method"], message["params"]
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(found["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning"):
            self.complaints.append(str(found["args"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{found['entry']['text']} {found['entry'].get('url', '')}")
        elif method == "Network.loadingFailed" and not found.get("canceled"):
            self.complaints.append(str(found))


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """An empty tab of a browser of its own."""
    command = [
        browser_path(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _port(process, profile / "DevToolsActivePort")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=WAIT_S) as found:
            tab = next(entry for entry in json.load(found) if entry["type"] == "page")
        connection = WebSocket(
            "127.0.0.1", port, "/" + tab["webSocketDebuggerUrl"].split("/", 3)[3]
        )
        try:
            yield Page(connection)
        finally:
            connection.close()
    finally:
        process.terminate()
        process.wait(WAIT_S)


def _port(process: "subprocess.Popen[bytes]", file: Path) -> int:
    """The port that the browser chose."""
    until = time.monotonic() + WAIT_S
    while not file.exists() or not file.read_text():
        assert process.poll() is None, "the browser ended"
        assert time.monotonic() < until, "the browser did not say its port"
        time.sleep(0.05)
    return int(file.read_text().splitlines()[0])
