"""A server of the few pages of Hugging Face's hub that an upload and a download ask for."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse


class Hub(http.server.ThreadingHTTPServer):
  """Keeps what is uploaded in memory.

  Attributes:
    status: what it answers to whoever makes a model; 200 lets them.
    models: name → path → content.
    private: name → whether it was made so.
  """

  def __init__(self):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.status, self.models, self.private = 200, {}, {}

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def running():
  """A hub that answers while this is open."""
  with Hub() as hub:
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
  server: Hub
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def _answer(self, value, status: int = 200, headers: dict | None = None) -> None:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    self.send_response(status)
    for name, text in ({"Content-Length": str(len(body))} | (headers or {})).items():
      self.send_header(name, text)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(body)

  def do_POST(self):
    body = self.rfile.read(int(self.headers["Content-Length"]))
    parts = urllib.parse.urlparse(self.path).path.strip("/").split("/")
    if parts == ["api", "repos", "create"]:
      self._create(json.loads(body))
    elif parts == ["api", "validate-yaml"]:
      self._answer({"errors": [], "warnings": []})
    elif parts[:2] == ["api", "models"] and parts[4] == "preupload":
      small = dict(uploadMode="regular", shouldIgnore=False, oid=None)
      self._answer({"files": [{"path": f["path"]} | small for f in json.loads(body)["files"]]})
    elif parts[:2] == ["api", "models"] and parts[4] == "commit":
      rows = [json.loads(row) for row in body.splitlines()]
      files = [row["value"] for row in rows if row["key"] == "file"]
      name = "/".join(parts[2:4])
      self.server.models[name] |= {f["path"]: base64.b64decode(f["content"]) for f in files}
      self._answer({"commitUrl": f"{self.server.url}/{name}/commit/1", "commitOid": "1" * 40})
    else:
      self._answer({"error": self.path}, 404)

  def _create(self, given: dict) -> None:
    if self.server.status != 200:
      self._answer({"error": "You don't have the rights"}, self.server.status)
      return
    name = f"{given['organization']}/{given['name']}"
    self.server.models.setdefault(name, {})
    self.server.private[name] = given.get("private") or given.get("visibility") == "private"
    self._answer({"url": f"{self.server.url}/{name}", "name": name})

  def do_GET(self):
    parts = urllib.parse.urlparse(self.path).path.strip("/").split("/")
    name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
    files = self.server.models.get(name)
    if files is None:
      self._answer({"error": "no such model"}, 404)
    elif parts[4:5] == ["revision"]:
      listed = [{"rfilename": path} for path in files]
      self._answer({"id": name, "sha": "1" * 40, "siblings": listed})
    elif parts[4:5] == ["tree"]:
      kinds = [("file", path, len(content)) for path, content in files.items()]
      rows = [dict(type=t, path=p, size=n, oid="0" * 40) for t, p, n in kinds]
      self._answer(rows)
    elif parts[2:3] == ["resolve"]:
      content = files["/".join(parts[4:])]
      etag = f'"{hashlib.sha1(content).hexdigest()}"'
      self._answer(content, headers={"ETag": etag, "X-Repo-Commit": "1" * 40})
    else:
      self._answer({"error": self.path}, 404)

  do_HEAD = do_GET
