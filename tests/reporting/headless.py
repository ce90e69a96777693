"""A headless Chromium, driven through its DevTools protocol over two pipes: no driver, no port, no network.

Host names resolve to nothing, so that a page that wants the network shows it as a failed request.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)
# Chromium reads commands from descriptor 3 and answers on descriptor 4.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3); os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE_SECONDS = 120
KEYS = {
    "Tab": 9,
    "Enter": 13,
    " ": 32,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}


def find() -> str | None:
    """The browser's program; None where none is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


CONTRASTS = """(() => {
  const channel = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = node => {
    for (; node instanceof Element; node = node.parentElement) {
      const found = numbers(getComputedStyle(node).backgroundColor);
      if (found.length === 3 || found[3] === 1) { return found; }
    }
    return [255, 255, 255];
  };
  const low = [];
  let seen = 0;
  document.querySelectorAll("body *").forEach(node => {
    const own = Array.from(node.childNodes).some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || node.matches("script, style, option, :disabled") || !node.getClientRects().length) { return; }
    const style = getComputedStyle(node);
    const ends = [light(numbers(node instanceof SVGElement ? style.fill : style.color)), light(behind(node))];
    const contrast = (Math.max(...ends) + 0.05) / (Math.min(...ends) + 0.05);
    seen += 1;
    if (contrast < 4.5) { low.push(contrast + " " + node.className + ": " + node.textContent.slice(0, 40)); }
  });
  return [seen, low];
})()"""
"""How many texts are seen, and those whose contrast (WCAG 2.2, relative luminance) is under 4.5."""


class Browser:
    """One running browser; a context manager."""

    def __init__(self, program: str, profile: Path) -> None:
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", LAUNCH, str(read_there), str(write_there)),
                *(program, *FLAGS, f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(read_there, write_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        self.read_end, self.write_end = read_here, write_here
        self.buffer, self.number, self.events = b"", 0, []  # type: ignore[var-annotated]

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.write_end)  # the browser ends with its pipe
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.read_end)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come in between are kept."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            found = self.next_message()
            if found.get("id") == self.number:
                assert "error" not in found, f"{method}: {found['error']}"
                return dict(found["result"])
            self.events.append(found)

    def next_message(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read_end], [], [], PATIENCE_SECONDS)
            assert ready, "the browser does not answer"
            data = os.read(self.read_end, 1 << 16)
            assert data, "the browser has ended"
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(line))

    def open(self, url: str) -> Page:
        """A new tab at the address, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.go(url)
        return page


class Page:
    """One tab."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self.browser, self.target, self.session = browser, target, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def seen(self, *methods: str) -> list[dict[str, Any]]:
        """The parameters of this tab's events so far."""
        return [
            event["params"]
            for event in self.browser.events
            if event.get("sessionId") == self.session and event["method"] in methods
        ]

    def go(self, url: str) -> None:
        """Load an address afresh."""
        loaded = len(self.seen("Page.loadEventFired"))
        self.call("Page.navigate", url="about:blank")
        self.wait("Page.loadEventFired", loaded + 1)
        self.call("Page.navigate", url=url)
        self.wait("Page.loadEventFired", loaded + 2)

    def wait(self, method: str, times: int) -> None:
        while len(self.seen(method)) < times:
            self.browser.events.append(self.browser.next_message())

    def js(self, expression: str) -> Any:
        """The value of an expression in the page, once the browser has laid it out."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, *keys: str, modifiers: int = 0) -> None:
        """Real key strokes, at whatever has the focus; `modifiers` 8 is shift."""
        for key in keys:
            code = KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)
            text = "\r" if key == "Enter" else key if len(key) == 1 else ""
            same = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
            self.call("Input.dispatchKeyEvent", type="keyDown", **same, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **same)

    def media(self, scheme: str = "light", kind: str = "") -> None:
        """Light or dark; "screen" or "print" whatever is being done, else as it is."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=kind, features=features)

    def size(self, width: int, height: int = 900) -> None:
        """The window in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def contrasts(self) -> tuple[int, list[str]]:
        """How many texts there are, and those that are too pale or too dark for what is behind them."""
        seen, low = self.js(CONTRASTS)
        return int(seen), list(low)

    def screenshot(self, path: Path) -> bytes:
        """The whole page as a PNG file."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))
        return path.read_bytes()

    def pdf(self, path: Path) -> bytes:
        """The page on paper."""
        found = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(found["data"]))
        return path.read_bytes()

    @property
    def problems(self) -> list[str]:
        """Everything that the console would show as an error or a warning."""
        logged = [
            entry["entry"]["text"]
            for entry in self.seen("Log.entryAdded")
            if entry["entry"]["level"] in ("warning", "error")
        ]
        said = [
            str(call["args"])
            for call in self.seen("Runtime.consoleAPICalled")
            if call["type"] in ("warning", "error", "assert")
        ]
        thrown = [str(event["exceptionDetails"]) for event in self.seen("Runtime.exceptionThrown")]
        return logged + said + thrown

    @property
    def requests(self) -> list[str]:
        """Every address that was asked for, beside files and blank pages."""
        asked = [event["request"]["url"] for event in self.seen("Network.requestWillBeSent")]
        return [url for url in asked if not url.startswith("about:")]
