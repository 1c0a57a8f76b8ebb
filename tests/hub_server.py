"""A stand-in for the Hugging Face Hub that takes uploads and gives them back: the endpoints its client calls."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "a" * 34
OWNER = "me"


class Hub(ThreadingHTTPServer):
    """Attributes: `repos` maps a repository to its files by name, `commits` has (repository, message)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[tuple[str, str]] = []
        self.licences = {"somebody/base": "mit"}
        self.address = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub() -> Iterator[Hub]:
    """A running stand-in."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Silent."""

    def answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.refuse(401, "Unauthorized", "Invalid credentials")
            return self.answer(200, {"type": "user", "name": OWNER, "orgs": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/main)?", path):
            if licence := self.server.licences.get(match[1]):
                return self.answer(200, {"id": match[1], "tags": [], "siblings": [], "cardData": {"license": licence}})
            if match[1] in self.server.repos:
                files = [{"rfilename": name} for name in self.server.repos[match[1]]]
                return self.answer(200, {"id": match[1], "sha": "0" * 40, "tags": [], "siblings": files})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/main/?", path):
            files = self.server.repos.get(match[1])
            if files is not None:
                rows = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                return self.answer(200, rows)
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/tree/main/.+", path):
            return self.refuse(404, "EntryNotFound", "no folders here")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.server.repos.get(match[1], {}).get(match[2])
            if content is not None:
                etag = hashlib.sha256(content).hexdigest()
                return self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": "0" * 40})
            if match[1] in self.server.repos:
                return self.refuse(404, "EntryNotFound", "Entry not found")
        self.refuse(404, "RepoNotFound", "Repository not found")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and "validate-yaml" not in path:
            return self.refuse(401, "Unauthorized", "Invalid credentials")
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or OWNER}/{asked['name']}"
            if not repo.startswith(f"{OWNER}/"):
                return self.refuse(403, "Forbidden", f"no right to create a model under {asked['organization']}")
            if repo in self.server.repos:
                return self.answer(409, {"error": "exists", "url": f"{self.server.address}/{repo}"})
            self.server.repos[repo] = {".gitattributes": b""}
            self.server.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
            return self.answer(200, {"url": f"{self.server.address}/{repo}", "name": repo})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if re.fullmatch(r"/api/models/.+/preupload/main", path):
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
            return self.answer(200, {"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.address}/objects/{o['oid']}", "header": {}}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            files = self.server.repos[match[1]]
            message = ""
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    message = value["summary"]
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            self.server.commits.append((match[1], message))
            done = {"commitUrl": f"{self.server.address}/{match[1]}/commit/{'0' * 40}", "commitOid": "0" * 40}
            return self.answer(200, {**done, "success": True, "hookOutput": ""})
        self.refuse(404, "RepoNotFound", "Repository not found")

    def do_PUT(self) -> None:
        content = self.body()
        oid = self.path.rsplit("/", 1)[1]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.objects[oid] = content
        self.answer(200)
