"""A hub on this machine: it takes uploads of model repositories and serves their files."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """repositories: the files of each by name. made: the requests for new repositories. asked: the paths of all requests.
    refuses: a status that every upload gets, or 0."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.made: list[dict[str, object]] = []
        self.asked: list[str] = []
        self.refuses = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def do_POST(self) -> None:
        hub, body = self.server, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.asked.append(self.path)
        if hub.refuses:
            self._answer({"error": "no right to write"}, hub.refuses)
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            hub.made.append(wanted)
            name = f"{wanted['organization']}/{wanted['name']}"
            hub.repositories.setdefault(name, {})
            self._answer({"url": f"{hub.endpoint}/{name}"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._answer({"files": files})
        else:
            repository = self.path.removeprefix("/api/models/").split("/commit/")[0]
            lines = [json.loads(line) for line in body.splitlines()]
            for file in (line["value"] for line in lines if line["key"] == "file"):
                hub.repositories[repository][file["path"]] = base64.b64decode(file["content"])
            self._answer({"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.endpoint}/{repository}/commit/{COMMIT}"})

    def _serve(self, body: bool) -> None:
        self.server.asked.append(self.path)
        repository, _, rest = self.path.strip("/").partition("/resolve/")
        files = self.server.repositories.get(repository)
        data = None if files is None else files.get(rest.partition("/")[2])
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if files is None else "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hash(data):x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _answer(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that runs meanwhile."""
    server = Hub()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
