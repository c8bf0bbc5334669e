"An OpenAI-compatible chat server on the loopback address that answers from the question and the picture, keeps what it was asked, and fails on demand."
import base64
import hashlib
import io
import json
import threading
import time
from types import SimpleNamespace

from loopback import Handler, Loopback, Server
from PIL import Image

KINDS = ("500", "503", "429", "cut", "torn", "slow", "junk", "html", "empty", "stranger")


def every(n, kind):
    "A fault in every n-th request, whatever is asked"
    return lambda i, asked: kind if i % n == n - 1 else None


class Chat(Loopback):
    "The server; use it as a context manager"
    def __init__(self, models=("tiny",), fault=None, answer=None, delay=0., key=None, retry_after="0.05"):
        self.models, self.fault, self.delay, self.key, self.retry_after = list(models), fault, delay, key, retry_after
        self.answer = answer or (lambda asked: hashlib.sha256(asked.prompt.encode() + asked.pixels).hexdigest()[:4])
        self.finish, self.said, self.gate = "stop", None, None # finish_reason, another name to answer by, a barrier that requests wait at
        self.log, self.listed, self.lock, self.active, self.peak = [], 0, threading.Lock(), 0, 0

    @property
    def answered(self): return [a for a in self.log if a.fault is None]


class _Quiet(Server):
    handle_error = lambda *_: None # a client that is killed, or tired of waiting, is no news


class _Handler(Handler):
    chat = property(lambda self: self.owner)

    def reply(self, status, value, headers=None, kind="application/json", cut=None):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.head(status, {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None: self.reset()

    def error(self, status, message, headers=None): self.reply(status, {"error": {"message": message, "type": "made to fail"}}, headers)

    def locked_out(self):
        if self.chat.key is None or self.headers.get("Authorization") == f"Bearer {self.chat.key}": return False
        self.error(401, "Incorrect API key provided")
        return True

    def do_GET(self):
        if self.locked_out(): return
        if self.path != "/v1/models": return self.error(404, f"no such path {self.path}")
        self.chat.listed += 1
        self.reply(200, {"object": "list", "data": [{"id": m, "object": "model"} for m in self.chat.models]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.locked_out(): return
        if self.path != "/v1/chat/completions": return self.error(404, f"no such path {self.path}")
        chat, content = self.chat, body["messages"][0]["content"]
        data = base64.b64decode(content[0]["image_url"]["url"].removeprefix("data:image/png;base64,"), validate=True)
        asked = SimpleNamespace(body=body, prompt=content[1]["text"], png=data, pixels=Image.open(io.BytesIO(data)).tobytes(), at=time.monotonic(), fault=None)
        with chat.lock:
            asked.n = len(chat.log)
            asked.fault = chat.fault(asked.n, asked) if chat.fault else None
            chat.log.append(asked)
            chat.active += 1
            chat.peak = max(chat.peak, chat.active)
        try: self.serve(asked)
        finally:
            with chat.lock: chat.active -= 1

    def serve(self, asked):
        chat = self.chat
        if asked.body["model"] not in chat.models: return self.error(404, f"The model `{asked.body['model']}` does not exist.")
        if chat.gate: chat.gate.wait()
        time.sleep(chat.delay(asked) if callable(chat.delay) else chat.delay)
        text, finish = chat.answer(asked), chat.finish
        if isinstance(text, tuple): text, finish = text
        good = {"id": f"chat-{asked.n}", "object": "chat.completion", "created": 0, "model": chat.said or asked.body["model"],
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
        self.fail(asked.fault, good) if asked.fault else self.reply(200, good)

    def fail(self, kind, good):
        if kind == "slow": time.sleep(2); self.reply(200, good)
        elif kind == "cut": self.reset()
        elif kind == "torn": self.reply(200, good, cut=40)
        elif kind == "junk": self.reply(200, json.dumps(good).encode()[:-30])
        elif kind == "html": self.reply(200, b"<html>gateway</html>", kind="text/html")
        elif kind == "empty": self.reply(200, good | {"choices": []})
        elif kind == "stranger": self.reply(200, good | {"model": "somebody-else"})
        elif kind == "429": self.error(429, "slow down", {"Retry-After": self.chat.retry_after})
        elif kind == "long": self.error(400, "This model's maximum context length is 1024 tokens.")
        else: self.error(int(kind), f"made to fail with {kind}")


Chat.handler, Chat.server_class = _Handler, _Quiet
