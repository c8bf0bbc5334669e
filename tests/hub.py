"A small hub on the loopback address: the endpoints that `datasets` and `huggingface_hub` call, repositories in memory, and faults on demand."
import hashlib
import io
import json
import re
import threading
from collections import namedtuple
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from loopback import Handler, Loopback
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXTS = pa.list_(pa.string())
SCHEMAS = {
    "screenqa": {"screen_id": pa.string(), "question": pa.string(), "ground_truth": TEXTS, "file_name": pa.string(), "image": IMAGE},
    "chartqa": {"image": IMAGE, "query": pa.string(), "label": TEXTS, "human_or_machine": pa.int64()},
    "infovqa": {"questionId": pa.string(), "question": pa.string(), "answers": TEXTS, "answer_type": TEXTS, "image": IMAGE,
                "image_url": pa.string(), "operation/reasoning": TEXTS, "ocr": pa.string(), "data_split": pa.string()},
    "infovqa_train": {"questionId": pa.string(), "question": pa.string(), "answers": TEXTS, "image": IMAGE},
    "chartqa_lmms": {"type": pa.string(), "question": pa.string(), "answer": pa.string(), "image": IMAGE}}


def picture(i, kind="PNG", size=(40, 30), **kw):
    "The encoded bytes of a picture that differs from every other `i`"
    im = Image.new("RGB", size, (i % 256, (7 * i) % 256, (i // 256) % 256))
    im.putpixel((1, 1), (255 - i % 256, 9, 9))
    im.save(out := io.BytesIO(), kind, **kw)
    return out.getvalue()


def shard(schema, rows, group=100):
    "The bytes of a parquet file; `schema` is a name in SCHEMAS or its own dictionary of types"
    types = SCHEMAS[schema] if isinstance(schema, str) else schema
    as_cell = lambda k, v: {"bytes": v, "path": None} if pa.types.is_struct(types[k]) and isinstance(v, bytes) else v
    rows = [{k: as_cell(k, r.get(k)) for k in types} for r in rows]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(types)), out := io.BytesIO(), row_group_size=group)
    return out.getvalue()


def card(configs=None, licence=None, extra=""):
    "A README.md with its YAML head; `configs` is {config: {split: glob}}"
    lines = [f"license: {licence}"] if licence else []
    for i, (name, splits) in enumerate((configs or {}).items()):
        lines += ["configs:"] * (i == 0) + [f"- config_name: {name}", "  data_files:"]
        for split, glob in splits.items(): lines += [f"  - split: {split}", f"    path: \"{glob}\""]
    return ("---\n" + "\n".join(lines) + "\n---\n" + "# A dataset\n" + extra).encode()


def sharded(schema, split, rows, n, folder="data", group=100):
    "{path: bytes} of `rows` in `n` files, named as the hub names them"
    size = -(-len(rows) // n)
    return {f"{folder}/{split}-{i:05}-of-{n:05}.parquet": shard(schema, rows[i * size:(i + 1) * size], group) for i in range(n)}


Fault = namedtuple("Fault", "pattern status headers cut times")
Request = namedtuple("Request", "method path range sent")


class Hub(Loopback):
    "The server; use it as a context manager"
    def __init__(self):
        self.repos, self.faults, self.log, self.lock, self.blobs = {}, [], [], threading.Lock(), {}
        self.token, self.cdn = None, False

    def add(self, repo, files, kind="datasets", gated=False, branch="main", tags=(), in_info=True):
        "Add a repository, or a new commit to one; returns the commit"
        sha = hashlib.sha1(repr(sorted((p, hashlib.sha256(b).hexdigest()) for p, b in files.items())).encode()).hexdigest()
        r = self.repos.setdefault((kind, repo), SimpleNamespace(commits={}, refs={}, gated=gated, tags=tags, in_info=in_info))
        r.commits[sha], r.refs[branch], r.gated = dict(files), sha, gated
        return sha

    def fault(self, pattern, status=None, headers=None, cut=None, times=1):
        "Answer requests like `METHOD /path` that match with a status, or cut the body after `cut` bytes (reset the connection if negative); `times` times"
        self.faults.append(SimpleNamespace(pattern=pattern, status=status, headers=headers or {}, cut=cut, times=times))

    def take(self, line):
        "The first fault that is due for this request"
        with self.lock:
            for f in self.faults:
                if f.times > 0 and re.search(f.pattern, line):
                    f.times -= 1
                    return f

    def gets(self, pattern="."):
        "The bodies that were fetched"
        return [r for r in self.log if r.method == "GET" and re.search(pattern, r.path)]


class _Handler(Handler):
    hub = property(lambda self: self.owner)

    def do_HEAD(self): self.answer()
    def do_GET(self): self.answer()
    def do_POST(self): self.answer()

    def reply(self, status, body=b"", headers=None, cut=None):
        self.head(status, {"Content-Length": str(len(body)), **(headers or {})})
        body = b"" if self.command == "HEAD" else body if cut is None else body[:cut]
        self.hub.log.append(Request(self.command, self.path, self.headers.get("Range"), len(body)))
        self.wfile.write(body)
        if cut is None: return
        self.close_connection = True
        if cut < 0: self.reset()

    def json(self, value, status=200, headers=None):
        self.reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def refuse(self, status, code, message): self.json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length).decode() if length else ""
        fault = self.hub.take(f"{self.command} {self.path}")
        if fault and fault.status: return self.json({"error": "made to fail"}, fault.status, fault.headers)
        url = urlsplit(self.path)
        if url.path.startswith("/cdn/"): return self.blob(self.hub.blobs[url.path[5:]], {}, fault)
        api = re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", url.path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url.path)
        if not (api or file): return self.refuse(404, "NotFound", "no such endpoint")
        kind, name = (api[1], api[2]) if api else ("datasets" if file[1] else "models", file[2])
        repo = self.hub.repos.get((kind, name))
        if repo is None: return self.refuse(404, "RepoNotFound", "Repository not found")
        denied = repo.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}"
        if denied and file: return self.refuse(401, "GatedRepo", f"Access to {name} is restricted")
        rev = unquote(file[3] if file else api[4] or "main")
        sha = repo.refs.get(rev, rev)
        if sha not in repo.commits: return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        files = repo.commits[sha]
        if file: return self.file(files, sha, unquote(file[4]), fault)
        if api[3] == "tree": return self.json(list(self.tree(files, unquote(api[5] or ""), parse_qs(url.query))))
        if api[3] == "paths-info":
            wanted = parse_qs(self.body).get("paths", [])
            return self.json([self.entry(p, files[p]) for p in wanted if p in files])
        self.json(self.info(name, repo, sha, files))

    def info(self, name, repo, sha, files):
        out = {"id": name, "sha": sha, "private": False, "gated": "auto" if repo.gated else False, "tags": list(repo.tags),
               "siblings": [{"rfilename": p} for p in sorted(files)]}
        licence = re.search(rb"^license: (.+)$", files.get("README.md", b""), re.M)
        return out | ({"cardData": {"license": licence[1].decode()}} if licence and repo.in_info else {})

    def entry(self, path, data):
        out = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        big = path.endswith((".parquet", ".safetensors", ".bin"))
        return out | ({"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}} if big else {})

    def tree(self, files, folder, query):
        deep, top = query.get("recursive", ["False"])[0].lower() == "true", folder.rstrip("/") + "/" if folder else ""
        folders = set()
        for path, data in sorted(files.items()):
            if not path.startswith(top): continue
            parents = path[len(top):].split("/")[:-1]
            folders |= {top + "/".join(parents[:i]) for i in range(1, len(parents) + 1 if deep else min(2, len(parents) + 1))}
            if deep or not parents: yield self.entry(path, data)
        yield from ({"type": "directory", "path": f, "size": 0, "oid": hashlib.sha1(f.encode()).hexdigest()} for f in sorted(folders))

    def file(self, files, sha, path, fault):
        if path not in files: return self.json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        data = files[path]
        big = path.endswith((".parquet", ".safetensors", ".bin"))
        digest = (hashlib.sha256 if big else hashlib.sha1)(data).hexdigest()
        if big and self.hub.cdn:  # as the hub does it: a redirect to another host, whose answer has another ETag
            self.hub.blobs[digest] = data
            return self.reply(302, b"", {"Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{digest}", "X-Repo-Commit": sha,
                                         "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data)), "ETag": '"other"'})
        self.blob(data, {"ETag": f'"{digest}"', "X-Repo-Commit": sha}, fault)

    def blob(self, data, headers, fault):
        headers = headers | {"Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted: return self.reply(200, data, headers, fault and fault.cut)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        part = {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self.reply(206, data[first:last + 1], part, fault and fault.cut)


Hub.handler = _Handler
