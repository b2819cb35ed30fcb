"""A Chromium without a window, spoken to through a pipe, and a server of static files for it."""

import contextlib
import functools
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_QUIET = ("--no-first-run", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
PATIENCE_SECONDS = 60


def find() -> str | None:
  """The program: JAXKD_TEST_BROWSER, or one of the usual names; None where there is none."""
  return os.environ.get("JAXKD_TEST_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def served(folder: pathlib.Path, headers: dict[str, str] | None = None):
  """Yields the address of a folder, served as by `python -m http.server`, and what it is asked."""
  asked: list[str] = []

  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, form, *args):
      asked.append(self.path)

    def end_headers(self):
      for name, value in (headers or {}).items():
        self.send_header(name, value)
      super().end_headers()

  handler = functools.partial(Handler, directory=os.fspath(folder))
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
      server.shutdown()
      thread.join()


class Page:
  """A tab, by Chromium's DevTools protocol.

  Attributes:
    addresses: of everything that it asked any server for.
    logged: warnings and errors of its console.
  """

  def __init__(self, reading: int, writing: int):
    self._reading, self._writing = os.fdopen(reading, "rb"), os.fdopen(writing, "wb")
    self._count, self._session, self._rest = 0, None, b""
    self.addresses: list[str] = []
    self.logged: list[str] = []
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "DOM", "Network", "Log"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **params) -> dict:
    """The answer of the browser."""
    self._count += 1
    message = {"id": self._count, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    self._writing.write(json.dumps(message).encode() + b"\0")
    self._writing.flush()
    while (answer := self._next()).get("id") != self._count:
      self._notice(answer)
    if "error" in answer:
      raise RuntimeError(f"{method}: {answer['error']['message']}")
    return answer["result"]

  def _next(self) -> dict:
    while b"\0" not in self._rest:
      part = self._reading.read1(1 << 16)
      if not part:
        raise RuntimeError("the browser has gone")
      self._rest += part
    message, self._rest = self._rest.split(b"\0", 1)
    return json.loads(message)

  def _notice(self, event: dict) -> None:
    params = event.get("params", {})
    if event.get("method") == "Network.requestWillBeSent":
      self.addresses.append(params["request"]["url"])
    if event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
      self.logged.append(params["entry"]["text"])
    if event.get("method") == "Runtime.exceptionThrown":
      self.logged.append(params["exceptionDetails"]["text"])

  def value(self, expression: str):
    """Of JavaScript, awaited where it is a promise."""
    options = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
    found = self.call("Runtime.evaluate", expression=expression, **options)
    if "exceptionDetails" in found:
      raise RuntimeError(found["exceptionDetails"]["exception"].get("description"))
    return found["result"].get("value")

  def until(self, expression: str):
    """The value of JavaScript when it is true at last."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (value := self.value(expression)):
      if time.monotonic() > end:
        raise TimeoutError(f"{expression} is {value!r}; {self.logged}")
      time.sleep(0.05)
    return value

  def open(self, address: str) -> None:
    self.addresses.clear()
    self.logged.clear()
    self.call("Page.navigate", url=address)
    self.until(f"document.readyState === 'complete' && location.href === {json.dumps(address)}")

  def choose(self, selector: str, path: pathlib.Path) -> None:
    """Chooses a file, as a person does."""
    root = self.call("DOM.getDocument")["root"]["nodeId"]
    node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
    self.call("DOM.setFileInputFiles", nodeId=node, files=[os.fspath(path)])


@contextlib.contextmanager
def opened(*flags: str):
  """Yields a Page of a browser of its own."""
  to_browser, from_browser = os.pipe(), os.pipe()
  with tempfile.TemporaryDirectory(prefix="jaxkd-browser-", ignore_cleanup_errors=True) as profile:
    program = [find(), "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    # The protocol is spoken on descriptors 3 and 4.
    pipes = f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
    process = subprocess.Popen(
      ["bash", "-c", pipes, "browser", *program, *_QUIET, *flags],
      pass_fds=(to_browser[0], from_browser[1]),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    page = None
    try:
      page = Page(from_browser[0], to_browser[1])
      yield page
      page._session = None
      page.call("Browser.close")
      process.wait(20)
    finally:
      process.kill()
      process.wait()
      for file in (page._reading, page._writing) if page else ():
        file.close()
