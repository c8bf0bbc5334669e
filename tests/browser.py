"""A real browser for tests: the machine's Chromium driven by Playwright, a server for a folder, and a watch on what a page does.

    with served("_docs") as url, browser() as chrome, visit(chrome, url + "/index.html") as (page, seen):
        assert not seen.errors and not seen.outside

Without Chromium the tests are skipped, and say so; where CI is set in the environment it is installed by .ci/browser, and its absence is a failure.
"""
import functools
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
LOCAL = ("http://localhost", "http://127.0.0.1", "ws://localhost", "ws://127.0.0.1", "data:", "blob:", "file:", "about:")


def find():
    "The browser's path, or None"
    return next(filter(None, map(shutil.which, NAMES)), None)


def chromium():
    "The browser's path; skips the test where there is none, except in CI, where it is installed"
    found = find()
    if not found and os.environ.get("CI"):
        done = subprocess.run([ROOT/".ci/browser"], capture_output=True, text=True)
        found = find()
        if not found: pytest.fail(f"CI needs a Chromium: {(done.stdout + done.stderr).strip() or 'it was installed, but is not on PATH'}", pytrace=False)
    if not found: pytest.skip(f"no Chromium on PATH ({', '.join(NAMES)}); on Debian: apt-get install chromium")
    return found


@contextmanager
def browser():
    "A running browser without a window"
    path = chromium()
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        try: yield chrome
        finally: chrome.close()


class Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): return None


@contextmanager
def served(folder):
    "Serve a folder on the loopback address; gives its URL"
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Seen:
    "What a page did that it should not do"
    errors: list = field(default_factory=list) # messages on the console, exceptions, answers of 400 and more
    outside: list = field(default_factory=list) # requests to another host

    @property
    def faults(self): return self.errors + [f"asks {u}" for u in self.outside]


def watch(page, home):
    "Record errors and requests that leave `home`"
    seen, here = Seen(), urlsplit(home).netloc
    page.on("console", lambda m: seen.errors.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: seen.errors.append(f"exception: {e}"))
    page.on("response", lambda r: seen.errors.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.on("requestfailed", lambda r: seen.errors.append(f"failed: {r.url}") if r.failure != "net::ERR_ABORTED" else None) # aborted: the page was left
    page.on("request", lambda r: seen.outside.append(r.url) if urlsplit(r.url).scheme in ("http", "https", "ws", "wss") and urlsplit(r.url).netloc != here else None)
    return seen


@contextmanager
def visit(chrome, url, viewport=None, **options):
    "Open a page in a fresh context; gives the page and what it did"
    context = chrome.new_context(viewport=viewport or DESK, **options)
    page = context.new_page()
    seen = watch(page, url)
    page.goto(url, wait_until="load")
    try: yield page, seen
    finally: context.close()


def too_wide(page):
    "How many pixels a page can be scrolled sideways, and what sticks out"
    return page.evaluate("""() => {
        const room = document.documentElement.clientWidth, over = document.documentElement.scrollWidth - room;
        if (over <= 1) return null;
        const scrolls = e => { for (e = e.parentElement; e; e = e.parentElement) if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX) && e.clientWidth <= room) return true; };
        const out = [...document.querySelectorAll('article *')].find(e => e.getBoundingClientRect().right > room + 1 && !scrolls(e));
        return `${over} px: ` + (out ? out.outerHTML.slice(0, 120) : 'unknown');
    }""")


# Contrast as WCAG defines it, between an element's colour and the first opaque background behind it; transparent inks are blended.
CONTRAST = """([selector, least]) => {
    const parse = c => { const v = c.match(/[\\d.]+/g).map(Number); return c.startsWith('color(') ? [v[0]*255, v[1]*255, v[2]*255, v[3] ?? 1] : [v[0], v[1], v[2], v[3] ?? 1]; };
    const lum = c => c.slice(0, 3).map(v => v/255).map(v => v <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4).reduce((s, v, i) => s + v*[.2126, .7152, .0722][i], 0);
    const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > .9) return c; } return [255, 255, 255, 1]; };
    const poor = [];
    for (const e of document.querySelectorAll(selector)) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()), box = e.getBoundingClientRect();
        if (!own || !box.width || !box.height || e.closest('svg')) continue;
        const back = behind(e), ink = parse(getComputedStyle(e).color), mixed = [0, 1, 2].map(i => ink[i]*ink[3] + back[i]*(1 - ink[3]));
        const [a, b] = [lum(mixed), lum(back)], ratio = (Math.max(a, b) + .05)/(Math.min(a, b) + .05);
        if (ratio < least) poor.push(`${ratio.toFixed(2)}: <${e.tagName.toLowerCase()} class="${e.className}"> ${e.textContent.trim().slice(0, 40)}`);
    }
    return poor;
}"""


def poor_contrast(page, selector="body *", least=3.0):
    "Text that is hard to read: its contrast and where it is"
    return page.evaluate(CONTRAST, [selector, least])


# Servers of one's own --------------------------------------------------------------------------------------------------------------

@contextmanager
def browser_page(width=1280, height=1000, **options):
    "A page that notes its console errors (`errors`) and requests to other machines (`outside`)"
    with browser() as chrome:
        page = chrome.new_context(viewport={"width": width, "height": height}, **options).new_page()
        page.errors, page.outside = [], []
        page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: page.errors.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith(LOCAL) else page.outside.append(r.url))
        yield page


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def serving(command, url, log, wait=180, **options):
    "A server in a process group of its own, up when `url` answers, with a page or with an error"
    with open(log, "w") as out: process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, **options)
    try:
        end = time.monotonic() + wait
        while True:
            try: urlopen(url, timeout=5).close(); break
            except HTTPError: break # it answers
            except (URLError, OSError) as e:
                said = open(log).read()[-2000:]
                assert process.poll() is None, f"{command} ended with {process.returncode}: {said}"
                assert time.monotonic() < end, f"{url} did not answer within {wait} s ({e}): {said}"
                time.sleep(.3)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try: process.wait(15)
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL); process.wait()
