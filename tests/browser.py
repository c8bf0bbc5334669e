"A headless Chromium for tests, and servers for it to look at; without a browser the tests are skipped, with the reason, except in CI."
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

LOCAL = ("http://localhost", "http://127.0.0.1", "ws://localhost", "ws://127.0.0.1", "data:", "blob:", "file:", "about:")


def chromium():
    "Path of the browser; skips the test where there is none, fails it in CI"
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found: return found
    said = "no Chromium found for the browser tests; on Debian: apt-get install chromium"
    if os.environ.get("CI"): pytest.fail(said)
    pytest.skip(said)


@contextmanager
def browser_page(width=1280, height=1000, **options):
    "A page that notes its console errors (`errors`) and requests to other machines (`outside`)"
    path = chromium()
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
            page.errors, page.outside = [], []
            page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda e: page.errors.append(str(e)))
            page.on("request", lambda r: None if r.url.startswith(LOCAL) else page.outside.append(r.url))
            yield page
        finally: browser.close()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def serving(command, url, log, wait=90, **options):
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
