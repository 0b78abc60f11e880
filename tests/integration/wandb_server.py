"""A server that speaks as much of W&B's protocol as its client uses, written from the client's own
requests: GraphQL, the file stream of a run's history, and uploads."""

import base64
import collections
import gzip
import http.server
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ENTITY = "me"
KEY = "f00d" * 10
Answer = dict[str, Any]


@dataclass
class RunOnServer:
    """What the server has of a run."""

    id: str
    values: dict[str, Any] = field(default_factory=dict)
    """As they were last upserted: config, displayName, groupName, jobType, tags."""
    files: dict[str, bytes] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=lambda: collections.defaultdict(dict))
    """Of each streamed file, by offset."""
    ended: bool = False

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row a step, in the order of the lines."""
        lines = self.lines["wandb-history.jsonl"]
        return [json.loads(lines[number]) for number in sorted(lines)]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.lines["wandb-summary.json"]
        return dict(json.loads(lines[max(lines)])) if lines else {}

    @property
    def config(self) -> dict[str, Any]:
        config = json.loads(self.values.get("config") or "{}")
        return {name: entry["value"] for name, entry in config.items() if name != "_wandb"}


class Server:
    """Serves on a free port of loopback until it is closed.

    `refuse` is asked before each request (operation or path): an HTTP status of its own refuses it.
    """

    def __init__(self) -> None:
        self.runs: dict[str, RunOnServer] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.views: list[dict[str, Any]] = []
        self.unknown: list[str] = []
        self.requests: collections.Counter[str] = collections.Counter()
        self.refuse: Callable[[str], int] = lambda what: 0
        self.lock = threading.RLock()
        self.open(0)

    def open(self, port: int) -> None:
        """Begins to serve, at a port of before or, with 0, at a free one."""
        handler = type("Handler", (Handler,), {"owner": self})
        self.http = Quiet(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> int:
        """Goes away; returns the port."""
        self.http.shutdown()
        self.http.server_close()
        return int(self.http.server_port)

    def answer(self, operation: str, values: dict[str, Any]) -> Answer:
        """The data of a GraphQL operation."""
        with self.lock:
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).lower()
            known = getattr(self, f"on_{name}", None)
            if known is None:
                self.unknown.append(operation)
                return {}
            data: Answer = known(values)
            return data

    def on_viewer(self, values: dict[str, Any]) -> Answer:
        person = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": person | {"teams": {"edges": []}}}

    def on_run_resume_status(self, values: dict[str, Any]) -> Answer:
        run = self.runs.get(values["name"])
        bucket = run and {
            "id": run.id,
            "name": run.id,
            "summaryMetrics": json.dumps(run.summary),
            "displayName": run.values.get("displayName"),
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "config": run.values.get("config") or "{}",
            "tags": run.values.get("tags") or [],
            "notes": None,
            "wandbConfig": '{"t": 1}',
        }
        return {"model": self.project(values["project"]) | {"bucket": bucket}}

    def project(self, name: str) -> Answer:
        return {"id": "p", "name": name, "entity": {"id": "e", "name": ENTITY}}

    def on_upsert_bucket(self, values: dict[str, Any]) -> Answer:
        name = values["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, RunOnServer(name))
        run.values |= {key: value for key, value in values.items() if value is not None}
        bucket = {
            "id": name,
            "name": name,
            "displayName": run.values.get("displayName"),
            "description": None,
            "config": run.values.get("config"),
            "sweepName": run.values.get("sweep"),
            "project": self.project(values["project"]),
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def on_create_run_files(self, values: dict[str, Any]) -> Answer:
        run = values["run"]
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"}
            for name in values["files"]
        ]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def on_artifact_type(self, values: dict[str, Any]) -> Answer:
        return {"project": {"artifact": None}}

    def on_server_features_query(self, values: dict[str, Any]) -> Answer:
        return {"serverInfo": {"features": []}}

    def on_create_artifact(self, values: dict[str, Any]) -> Answer:
        asked = values["input"]
        name = str(len(self.artifacts))
        self.artifacts[name] = asked | {"state": "PENDING"}
        sequence = {"latestArtifact": None}
        artifact = {"id": name, "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def on_create_artifact_manifest(self, values: dict[str, Any]) -> Answer:
        name = values["artifactID"]
        url = f"{self.url}/blob/{name}/{values['name']}"
        file = {"id": f"m{name}", "uploadUrl": url, "uploadHeaders": []}
        manifest = {"id": f"m{name}", "file": file}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def on_create_artifact_files(self, values: dict[str, Any]) -> Answer:
        edges = []
        for file in values["input"]["artifactFiles"]:
            owner, name = file["artifactID"], file["name"]
            node = {
                "id": f"{owner}/{name}",
                "name": name,
                "displayName": name,
                "uploadUrl": f"{self.url}/blob/{owner}/{name}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "storagePath": f"blob/{owner}/{name}",
                "artifact": {"id": owner},
            }
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_commit_artifact(self, values: dict[str, Any]) -> Answer:
        artifact = self.artifacts[values["artifactID"]]
        artifact["state"] = "COMMITTED"
        done = {"id": values["artifactID"], "digest": artifact["digest"]}
        return {"commitArtifact": {"artifact": done}}

    def on_artifact_by_id(self, values: dict[str, Any]) -> Answer:
        own = self.artifacts[values["id"]]
        project = self.project(own["projectName"]) | {"internalId": "1"}
        kept = own["artifactCollectionName"]
        collection = {"__typename": "ArtifactSequence", "name": kept, "project": project}
        alias = {"__typename": "ArtifactAlias", "id": "a", "alias": "latest"}
        artifact = {
            "__typename": "Artifact",
            "id": values["id"],
            "artifactSequence": collection,
            "versionIndex": 0,
            "artifactType": {"name": own["artifactTypeName"]},
            "description": None,
            "metadata": "{}",
            "ttlDurationSeconds": 0,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": own["state"],
            "size": 1,
            "digest": own["digest"],
            "commitHash": "0",
            "fileCount": 1,
            "createdAt": "2026-01-01T00:00:00",
            "updatedAt": None,
            "aliases": [alias | {"artifactCollection": collection}],
        }
        return {"artifact": artifact}

    def on_upsert_view2(self, values: dict[str, Any]) -> Answer:
        self.views.append(values)
        return {"upsertView": {"view": {"id": "v", "name": values["name"]}, "inserted": True}}

    def stream(self, run: str, body: dict[str, Any]) -> None:
        """A piece of a run's streamed files."""
        with self.lock:
            files = self.runs.setdefault(run, RunOnServer(run))
            for name, piece in body.get("files", {}).items():
                for number, line in enumerate(piece["content"], start=piece["offset"]):
                    files.lines[name][number] = line
            files.ended |= bool(body.get("complete"))

    def upload(self, path: str, content: bytes) -> None:
        """A file of a run, or of an artifact."""
        with self.lock:
            kind, owner, name = path.split("/", 2)
            if kind == "upload":
                self.runs[owner].files[name] = content
            else:
                self.blobs[f"{owner}/{name}"] = content


class Quiet(http.server.ThreadingHTTPServer):
    """Says nothing of connections that the client resets."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Hands requests to the server."""

    protocol_version = "HTTP/1.1"
    owner: Server

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(pieces)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def handle_request(self) -> None:
        body = self.body()
        what, query = self.path, {}
        if self.path == "/graphql":
            query = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])
            what = query.get("operationName") or (found[1] if found else "?")
        self.owner.requests[what] += 1
        if status := self.owner.refuse(what):
            self.reply(status, {"errors": [{"message": f"refused {what}"}]})
            return
        if self.path == "/graphql":
            key = base64.b64decode(self.headers["Authorization"].split()[-1]).decode()
            if not key.endswith(KEY):
                self.reply(401, {"errors": [{"message": "no such key"}]})
                return
            self.reply(200, {"data": self.owner.answer(what, query.get("variables") or {})})
            return
        if found := re.fullmatch(r"/files/(?:[^/]+/)?[^/]+/([^/]+)/file_stream", self.path):
            self.owner.stream(found[1], json.loads(body))
        elif self.path.startswith(("/upload/", "/blob/")):
            self.owner.upload(self.path[1:], body)
        self.reply(200, {})

    def reply(self, status: int, content: Answer) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_PATCH = do_HEAD = handle_request  # noqa: N815
