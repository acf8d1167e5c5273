"""A headless Chromium, driven over its debugging pipe: messages are JSON, each ended by a zero byte."""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars",
    "--no-first-run", "--disable-background-networking", "--remote-debugging-pipe", "--window-size=1300,800",
)  # fmt: skip


def find() -> str | None:
    """The path of a Chromium, if there is one."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One tab; use it in a `with` statement. `faults` collects errors of the console, exceptions and requests over the network."""

    def __enter__(self) -> "Browser":
        # The browser's other processes end a moment after it, and write until then.
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        there, self.write = os.pipe()
        self.read, here = os.pipe()

        def ends() -> None:  # Chromium reads from 3 and writes to 4; copied high first, so that neither overwrites the other
            ours, theirs = os.dup2(there, 103), os.dup2(here, 104)
            os.dup2(ours, 3), os.dup2(theirs, 4)

        command = [str(find()), *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, preexec_fn=ends, close_fds=False, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        os.close(there), os.close(here)
        self.buffer, self.number, self.session, self.faults = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.read), os.close(self.write)
        self.profile.cleanup()

    def call(self, method: str, **parameters: object) -> dict:
        """The result of one command of the DevTools protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + 60
        while (answer := self._next(until)).get("id") != self.number:
            self._watch(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path) -> None:
        """Open a file, and wait until it is loaded."""
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def value(self, script: str) -> object:
        """The value of an expression in the page; of a promise when it is there."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true, for at most 30 seconds."""
        self.value(f"new Promise((yes, no) => {{ const end = Date.now() + 30000, look = () => ({script}) ? yes(true) : Date.now() > end ? no(new Error('waited in vain')) : setTimeout(look, 20); look() }})")

    def screenshot(self, path: Path) -> None:
        """The page as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _next(self, until: float) -> dict:
        while b"\0" not in self.buffer:
            assert select.select([self.read], [], [], max(until - time.monotonic(), 0))[0], "Chromium does not answer"
            self.buffer += os.read(self.read, 1 << 20)
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _watch(self, message: dict) -> None:
        method, what = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.faults.append(what["exceptionDetails"])
        elif method == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
            self.faults.append(what["args"])
        elif method == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.faults.append(what["entry"])
        elif method == "Network.requestWillBeSent" and not what["request"]["url"].startswith(("file:", "data:", "blob:", "about:")):
            self.faults.append(what["request"]["url"])
