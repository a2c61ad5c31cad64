"""A small Hugging Face Hub on loopback: what the client calls to upload a folder and to download a file."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """Repositories in memory: `repos[id][file]` is bytes. `token` is the only one it knows."""

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.repos: dict[str, dict[str, bytes]] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args) -> None:
        """Keep quiet."""

    def answer(self, status: int, content: bytes | dict | list = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {self.server.token}"
            return self.answer(200, {"name": "me", "type": "user"}) if known else self.answer(401, {"error": "bad token"})
        if self.path.startswith("/api/models/"):  # /api/models/{owner}/{name}/tree/{revision}
            files = self.server.repos.get("/".join(self.path.split("/")[3:5]), {})
            return self.answer(200, [{"type": "file", "path": p, "size": len(c), "oid": "1"} for p, c in files.items()])
        owner, name, _, _, *path = self.path.strip("/").split("?")[0].split("/")
        files = self.server.repos.get(f"{owner}/{name}")
        if files is None:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if "/".join(path) not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        return self.answer(200, files["/".join(path)], X_Repo_Commit=COMMIT, ETag='"1"')

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if repo in self.server.repos:
                return self.answer(409, {"url": f"{self.server.url}/{repo}"})
            self.server.repos[repo] = {}
            return self.answer(200, {"url": f"{self.server.url}/{repo}", "name": repo})
        repo = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            return self.answer(200, {"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = {"commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
        return self.answer(200, commit | {"pullRequestUrl": None})
