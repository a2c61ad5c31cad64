"""A small Weights & Biases server on loopback: what its client calls to start, feed and finish a run."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "a" * 40
VIEWER = {"viewer": {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}}


def operation(query: str) -> str:
    """The name of a query or mutation."""
    return re.search(r"(?:query|mutation)\s+(\w+)", query)[1]


class WandbServer:
    """Runs in memory: `rows[id]` are the dicts logged, `summary[id]` the last summary, `finished` the ids that ended,
    `started[id]` what the client said of a run: its group, tags, configuration.

    `queries` holds the name of each GraphQL operation that was asked, in order.
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[dict]] = {}
        self.summary: dict[str, dict] = {}
        self.finished: set[str] = set()
        self.started: dict[str, dict] = {}
        self.status: dict[str, int | None] = {}
        self.queries: list[str] = []
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listen, after an outage on the same port."""
        self.listener = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.listener.memory = self
        self.port = self.listener.server_address[1]
        threading.Thread(target=self.listener.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections."""
        self.listener.shutdown()
        self.listener.server_close()

    @property
    def env(self) -> dict[str, str]:
        """The environment that leads a client here."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.port}", "WANDB_API_KEY": KEY}

    def graphql(self, operation: str, asked: dict) -> dict:
        """The data that answers one query or mutation."""
        self.queries.append(operation)
        if operation == "Viewer":
            return VIEWER
        if operation == "GetDefaultEntity":
            return VIEWER
        if operation == "Runs":
            edges = [{"node": self.node(run), "cursor": run} for run in self.rows]
            page = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
            return {"project": {"internalId": "1", "runCount": len(edges), "readOnly": False, "runs": page}}
        if operation == "RunFullHistory":
            return {"project": {"run": {"history": [json.dumps(row) for row in self.rows[asked["name"]]]}}}
        if operation == "UpsertBucket":
            self.started[asked["name"]] = self.started.get(asked["name"], {}) | {k: v for k, v in asked.items() if v}
            project = {"id": "1", "name": asked["project"], "entity": {"id": "1", "name": "me"}}
            bucket = {"id": asked["name"], "name": asked["name"], "displayName": asked["displayName"], "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": asked["name"] not in self.rows}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.env['WANDB_BASE_URL']}/upload"} for name in asked["files"]]
            return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}
        return {"model": None, "entity": None, "serverInfo": {"features": []}}  # no run to resume, nothing optional

    def node(self, run: str) -> dict:
        """A run as the client's queries see it."""
        said, nothing = self.started[run], dict.fromkeys(("sweepName", "commit", "description", "notes"))
        about = {"id": run, "name": run, "projectId": "1", "internalId": "1", "tags": said.get("tags", [])}
        about |= {"displayName": said["displayName"], "group": said.get("groupName"), "jobType": said.get("jobType")}
        about |= {"config": said["config"], "summaryMetrics": json.dumps(self.summary.get(run, {})), "systemMetrics": "{}"}
        times = dict.fromkeys(("createdAt", "heartbeatAt"), "2026-01-01T00:00:00")
        state = ("failed" if self.status[run] else "finished") if run in self.finished else "running"
        return (
            nothing
            | about
            | times
            | {
                "state": state,
                "user": {"name": "me", "username": "me"},
                "readOnly": False,
                "historyLineCount": len(self.rows[run]),
            }
        )

    def stream(self, run: str, sent: dict) -> None:
        """Remember what the file stream of a run brings."""
        files = sent.get("files", {})
        for line in files.get("wandb-history.jsonl", {}).get("content", []):
            self.rows.setdefault(run, []).append(json.loads(line))
        for line in files.get("wandb-summary.json", {}).get("content", []):
            self.summary[run] = json.loads(line)
        if sent.get("complete"):
            self.finished.add(run)
            self.status[run] = sent.get("exitcode")


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args) -> None:
        """Keep quiet."""

    def do_POST(self) -> None:
        body, answer = self.rfile.read(int(self.headers.get("Content-Length", 0))), {}
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = {"data": self.server.memory.graphql(operation(asked["query"]), asked.get("variables", {}))}
        elif self.path.endswith("/file_stream"):  # /files/{entity}/{project}/{run}/file_stream
            self.server.memory.stream(self.path.split("/")[4], json.loads(body))
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST  # what is uploaded, and telemetry, is dropped
