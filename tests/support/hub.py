"""A small Hugging Face Hub on loopback: what the client calls to upload a commit and to download files."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

COMMIT = "0" * 40
BROKEN = b"the connection breaks here"
LFS_SIZE = 1_000_000
"""Files from this size on go another way: first by themselves (LFS), then by name in the commit."""


class Hub(ThreadingHTTPServer):
    """Repositories in memory: `repos[id][file]` is bytes, or a status. `token` is the only one it knows.

    `private` are seen with the token only; `gated` by nobody yet. `commits` counts what was committed, `requests` is
    every path that was asked for.
    """

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.role = "write"
        self.large: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.requests: list[str] = []
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

    def close_connection_now(self) -> None:
        """Hang up in the middle of an answer."""
        self.close_connection = True
        self.connection.close()

    def refused(self, repo: str, revision: str) -> bool:
        """Answer as the Hub does where a repository or a revision is not to be had."""
        sent = self.headers.get("Authorization")
        known = sent == f"Bearer {self.server.token}"
        if sent and not known:
            self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        elif repo not in self.server.repos or (repo in self.server.private and not known):
            self.answer(404 if known else 401, X_Error_Code="RepoNotFound")
        elif repo in self.server.gated:
            self.answer(403, X_Error_Code="GatedRepo")
        elif revision not in ("main", COMMIT):
            self.answer(404, X_Error_Code="RevisionNotFound")
        else:
            return False
        return True

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {self.server.token}"
            account = {"name": "me", "type": "user", "auth": {"accessToken": {"role": self.server.role}}}
            return self.answer(200, account) if known else self.answer(401, {"error": "bad token"})
        path = self.path.strip("/").split("?")[0].split("/")
        if path[0] == "api" and path[1] != "models":  # what the client asks for besides
            return self.answer(404)
        if path[0] == "api":  # /api/models/{owner}/{name}/tree/{revision}
            repo = "/".join(path[2:4])
            if self.refused(repo, path[5] if len(path) > 5 else "main"):
                return None
            if len(path) == 4:
                return self.answer(200, {"id": repo, "private": repo in self.server.private})
            files = self.server.repos[repo].items()
            return self.answer(200, [{"type": "file", "path": p, "size": len(c), "oid": "1"} for p, c in files])
        owner, name, _, revision, *path = path
        if self.refused(f"{owner}/{name}", revision):
            return None
        content = self.server.repos[f"{owner}/{name}"].get("/".join(path))
        if content == BROKEN:
            return self.close_connection_now()
        if isinstance(content, int):  # the status of a Hub that is busy
            return self.answer(content)
        if content is None:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        return self.answer(200, content, X_Repo_Commit=COMMIT, ETag=f'"{hash(content):x}"')

    do_HEAD = do_GET

    def do_PUT(self) -> None:  # /lfs/{oid}
        self.server.large[self.path.split("/")[-1]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(self.path)
        if self.path == "/api/validate-yaml":
            card = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            wrong = [] if isinstance(card["tags"], list) else [{"message": "tags must be a list"}]
            return self.answer(400 if wrong else 200, {"errors": wrong, "warnings": []})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if repo in self.server.repos:
                return self.answer(409, {"url": f"{self.server.url}/{repo}"})
            self.server.repos[repo] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(repo)
            return self.answer(200, {"url": f"{self.server.url}/{repo}", "name": repo})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for item in objects:
                item["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
            return self.answer(200, {"objects": objects})
        repo = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            modes = {f["path"]: "lfs" if f["size"] >= LFS_SIZE else "regular" for f in json.loads(body)["files"]}
            files = [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]
            return self.answer(200, {"files": files})
        files = self.server.repos[repo]
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        self.server.commits.append(repo)
        commit = {"commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
        return self.answer(200, commit | {"pullRequestUrl": None})
