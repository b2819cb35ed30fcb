"""Servers of buckets, processes of their own, that speak the protocols of S3 and of Google's."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request


@contextlib.contextmanager
def started():
  """Yields the environment of processes that use a server of S3's protocol."""
  with _process("-m", "moto.server", "-p", "{port}") as url:
    yield {
      "AWS_ENDPOINT_URL": url,
      "AWS_ACCESS_KEY_ID": "somebody",
      "AWS_SECRET_ACCESS_KEY": "secret",
      "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextlib.contextmanager
def googles(bucket: str):
  """The same of Google's, with one bucket."""
  start = "from gcp_storage_emulator.__main__ import main; import sys; sys.exit(main())"
  line = ("-c", start, "start", "--port={port}", "--in-memory", f"--default-bucket={bucket}")
  with _process(*line) as url:
    # Its experimental part asks what kind of bucket it is, of a server that is not there.
    yield {"STORAGE_EMULATOR_HOST": url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


@contextlib.contextmanager
def _process(*arguments: str):
  """Yields the address of a server that this Python runs."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  line = [sys.executable, *(argument.format(port=port) for argument in arguments)]
  process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  try:
    _wait_for(port, process)
    yield f"http://127.0.0.1:{port}"
  finally:
    process.kill()
    process.wait()


def _wait_for(port: int, process: subprocess.Popen) -> None:
  for _ in range(1200):
    assert process.poll() is None
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
      return
    time.sleep(0.05)
  raise TimeoutError(f"port {port}")


def let_in(requests: float) -> None:
  """From now on the server answers so many requests of those whom it does not know."""
  url = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
  plain = {"Content-Type": "text/plain"}
  asked = urllib.request.Request(url, str(requests).encode(), plain, method="POST")
  urllib.request.urlopen(asked).close()
