"""A headless Chromium, driven over its DevTools protocol through a pipe."""

import json
import os
import pathlib
import shutil
import subprocess
import threading
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
).split()
_LONGEST = 60  # seconds until a browser that hangs is ended


class Browser:
    """One tab. `requests` and `messages` hold the addresses it asked for, and what it wrote into its console."""

    def __init__(self, folder: pathlib.Path):
        """Starts Chromium with its profile in a new, empty ``folder``.

        Raises:
          FileNotFoundError: there is no Chromium.
        """
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            raise FileNotFoundError("this test needs Chromium: apt-get install chromium, as root (.ci/run does)")
        theirs, self._to = os.pipe()
        self._from, back = os.pipe()
        # Chromium reads commands from file 3 and writes to file 4, each ended by a null byte.
        script = f'exec "$@" 3<&{theirs} 4>&{back}'
        command = ["bash", "-c", script, "bash", program, *SWITCHES, f"--user-data-dir={folder}", "about:blank"]
        log = folder.with_suffix(".log").open("wb")
        self._process = subprocess.Popen(command, pass_fds=(theirs, back), stdout=log, stderr=log)
        for end in (theirs, back):
            os.close(end)
        log.close()
        self._timer = threading.Timer(_LONGEST, self._process.kill)
        self._timer.start()
        self._rest, self._number, self._session = b"", 0, {}
        self._loaded = False
        self.requests: list[str] = []
        self.messages: list[str] = []

    def __enter__(self) -> "Browser":
        (target,) = [one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        for end in (self._to, self._from):
            os.close(end)

    def open(self, file: pathlib.Path) -> None:
        """Shows a file; `requests` and `messages` begin anew."""
        self._loaded = False
        self.requests.clear()
        self.messages.clear()
        self.call("Page.navigate", url=file.as_uri())
        while not self._loaded:
            self._read()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def point(self, selector: str, *, click: bool = False) -> None:
        """Moves the mouse to the middle of an element, once it is scrolled into view."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        self.run("new Promise(requestAnimationFrame).then(() => new Promise(requestAnimationFrame)).then(() => 0)")
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.run(f"[{box}.x + {box}.width / 2, {box}.y + {box}.height / 2]")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Presses a key, such as Tab or ArrowRight."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code[key])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result.

        Raises:
          RuntimeError: Chromium refuses it, or has ended.
        """
        self._number += 1
        sent = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._to, json.dumps(sent).encode() + b"\0")
        while (got := self._read()).get("id") != self._number:
            pass
        if "error" in got:
            raise RuntimeError(f"{method}: {got['error']}")
        return got["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._from, 1 << 16)
            if not more:
                raise RuntimeError(f"Chromium ended, or was ended after {_LONGEST} s")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        got = json.loads(line)
        found = got.get("params", {})
        match got.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(found["request"]["url"])
            case "Runtime.consoleAPICalled":
                self.messages.append(str(found["args"]))
            case "Runtime.exceptionThrown":
                self.messages.append(str(found["exceptionDetails"]))
            case "Log.entryAdded":
                self.messages.append(found["entry"]["text"])
        return got
