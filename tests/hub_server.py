"""A model hub on the loopback: it serves folders as huggingface_hub asks for them."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

LARGE = 64  # bytes from which a file lies elsewhere, as files of Git LFS do


class Hub(ThreadingHTTPServer):
    """Serves `root/OWNER/REPO/...`, each repository with one commit.

    Attributes:
      requests: what was asked for, `(method, path)` each. Large files lie on another host:
        127.0.0.1 redirects to localhost.
      headers: the headers of every request.
      gated: repositories whose files need the token "hf_secret".
      cuts: numbers of bytes after which the next connections of large files are cut.
      down: status of every answer, or None.
      revisions: names of that commit.
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.requests, self.headers = Path(root), [], []
        self.gated, self.cuts, self.down = set(), [], None
        self.revisions = {"main"}
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo: str) -> dict[str, bytes]:
        folder = self.root / repo
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def commit(self, repo: str) -> str:
        digest = hashlib.sha1(repo.encode())
        for name, data in self.files(repo).items():
            digest.update(name.encode() + data)
        return digest.hexdigest()

    def fetched(self) -> list[str]:
        """Names of the files whose contents were sent, in order of names."""
        asked = {path for method, path in self.requests if method == "GET"}
        files = [path for path in asked if path.split("/")[3] in ("blob", "resolve")]
        return sorted({path.split("/", 5)[5] for path in files})


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        """Says nothing."""

    def do_HEAD(self):
        """The metadata of a file."""
        self.answer()

    def do_GET(self):
        """A repository's commit, its listing, or a file."""
        self.answer()

    def answer(self):
        path = unquote(self.path.split("?")[0])
        self.server.requests.append((self.command, path))
        self.server.headers.append({k.title(): v for k, v in self.headers.items()})
        if self.server.down:
            return self.send(self.server.down)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.about("/".join(parts[2:4]), parts[4:])
        if len(parts) > 4 and parts[2] in ("resolve", "blob"):
            return self.file("/".join(parts[:2]), *parts[2:4], "/".join(parts[4:]))
        return self.send(404)

    def about(self, repo, rest):
        if not self.known(repo, "/".join(rest[1:]) or "main"):
            return None
        commit, files = self.server.commit(repo), self.server.files(repo)
        if rest[:1] != ["tree"]:
            return self.json({"id": repo, "sha": commit, "siblings": [], "tags": []})
        entries = []
        for name, data in files.items():
            sha = hashlib.sha256(data).hexdigest()
            large = {"lfs": {"oid": sha, "size": len(data), "pointerSize": 134}}
            entries.append(
                {"type": "file", "path": name, "size": len(data), "oid": sha[:40]}
                | (large if len(data) >= LARGE else {})
            )
        return self.json(entries)

    def known(self, repo, revision) -> bool:
        if not self.server.files(repo):
            self.send(401, {"X-Error-Code": "RepoNotFound"})
        elif revision not in (*self.server.revisions, self.server.commit(repo)):
            self.send(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    def file(self, repo, kind, revision, name):
        if not self.known(repo, revision):
            return None
        data = self.server.files(repo).get(name)
        if data is None:
            return self.send(404, {"X-Error-Code": "EntryNotFound"})
        secret = self.headers["Authorization"] == "Bearer hf_secret"
        if kind == "resolve" and repo in self.server.gated and not secret:
            return self.send(401, {"X-Error-Code": "GatedRepo"})
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        about = {"X-Repo-Commit": self.server.commit(repo), "Accept-Ranges": "bytes"}
        if kind == "resolve" and len(data) >= LARGE:
            # The file's own tag and length, and where it lies.
            about |= {"X-Linked-Etag": tag, "X-Linked-Size": str(len(data))}
            about["X-Xet-Hash"] = tag.strip('"')
            about["Link"] = '</api/models/xet>; rel="xet-auth"'
            elsewhere = self.server.url.replace("127.0.0.1", "localhost")
            place = f"{elsewhere}/{repo}/blob/{revision}/{name}"
            return self.send(302, about | {"Location": place})
        about["ETag"], status, rest = tag, 200, data
        if wanted := self.headers["Range"]:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            about["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            status, rest = 206, data[first:]
        large = self.command == "GET" and len(data) >= LARGE
        cut = self.server.cuts.pop(0) if large and self.server.cuts else None
        return self.send(status, about, rest, cut)

    def json(self, value):
        self.send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def send(self, status, headers=(), data=b"", cut=None):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data if cut is None else data[:cut])
        if cut is not None and cut < len(data):
            self.wfile.flush()
            self.close_connection = True
