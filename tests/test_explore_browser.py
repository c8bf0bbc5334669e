"""The explorer in a real browser: JupyterLab and Voila, driven by clicks, keys and files."""
import base64
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from browser import browser_page, chromium, free_port, poor_contrast, serving

from r3nb.explorer import demo_world

ROOT = Path(__file__).parent.parent
TEXT = "(document.querySelector('.r3')?.innerText ?? '')"
STATUS = "(document.querySelector('.r3-status')?.innerText ?? '')"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A copy of the notebook, and an environment that keeps Jupyter's files out of the user's folders"
    chromium()
    d = tmp_path_factory.mktemp("browser")
    shutil.copy(ROOT/"nbs/explore.ipynb", d)
    own = {k: str(d/k.lower()) for k in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    with pytest.MonkeyPatch.context() as m:
        m.setenv("XDG_CACHE_HOME", str(d/"cache"))
        demo_world()
        yield d, os.environ | own | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])), "XDG_CACHE_HOME": str(d/"cache")}


@pytest.fixture(scope="module")
def lab(place):
    "Address of a JupyterLab on the explorer, as `make lab` starts it"
    d, env = place
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "explore.ipynb", "--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True"]
    with serving(command, f"http://localhost:{port}/api", d/"lab.log", cwd=d, env=env | {"JUPYTER_PATH": str(ROOT/"scripts/jupyter/lab")}): yield f"http://localhost:{port}/lab/tree/explore.ipynb?reset"


@pytest.fixture(scope="module")
def voila(place):
    "Address of the explorer in Voila, as `make explore` starts it"
    d, env = place
    port = free_port()
    command = [sys.executable, "-m", "voila", "--template=r3nb", "explore.ipynb", "--no-browser", f"--port={port}"]
    with serving(command, f"http://localhost:{port}/nothing", d/"voila.log", cwd=d, env=env | {"JUPYTER_PATH": str(ROOT/"scripts/jupyter")}):
        yield f"http://localhost:{port}/"


def wait(page, js, seconds=60):
    "Until an expression is true"
    try: page.wait_for_function(js, timeout=1000*seconds)
    except Exception as e: raise AssertionError(f"{js} stayed false; status: {page.evaluate(STATUS)!r}; errors: {page.errors[:3]}") from e


def tick(page, name): page.locator(".widget-checkbox", has_text=name).locator("input").first.click()


def drive(page, d):
    "What a person does with the explorer, the same in JupyterLab and in Voila"
    wait(page, f"{TEXT}.includes('λ = 0.6') && {STATUS}.includes(' s')", 120)
    assert all(w in page.evaluate(TEXT) for w in ("Text of the page", "Answers", "base", "rag", "r3", "Found by text", "Found by image", "Whom r3 trusts", "own page", "prompt of r3", "measured", "estimated"))
    handle = page.locator(".noUi-handle").first
    handle.focus()
    for _ in range(12): handle.press("ArrowLeft")
    wait(page, f"{TEXT}.includes('λ = 0: nothing')")
    for _ in range(16): handle.press("ArrowRight")
    wait(page, f"{TEXT}.includes('λ = 0.8')")
    tick(page, "occlusion")
    wait(page, f"{TEXT}.includes('λ = 0.8: occlusion')")
    tick(page, "gate")
    wait(page, f"{TEXT}.includes('r3-gate')")
    page.locator(".widget-dropdown", has_text="dataset").locator("select").select_option("screenqa")
    wait(page, f"{STATUS}.includes('screenqa_val_0')")
    page.locator(".widget-dropdown", has_text="question").locator("select").select_option(index=2)
    wait(page, f"{STATUS}.includes('screenqa_val_2')")
    seconds = float(page.evaluate(STATUS).split(":")[1].split()[0])
    assert seconds < 3
    page.get_by_text("prompt of rag").click()
    assert "Evidence:" in page.evaluate(TEXT)
    drive_own_page(page, d)


def choose(page, file):
    "Choose a file as a person does"
    with page.expect_file_chooser() as chooser: page.locator(".r3-drop").locator("visible=true").click()
    chooser.value.set_files(file)


DROP = """([name, content]) => {
    const files = new DataTransfer(), zone = [...document.querySelectorAll(".r3-drop")].find(e => e.offsetParent);
    files.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name, {type: "image/png"}));
    for (const kind of ["dragenter", "dragover", "drop"]) zone.dispatchEvent(new DragEvent(kind, {dataTransfer: files, bubbles: true, cancelable: true}));
}"""


def drop(page, file):
    "Drop a file from outside the browser on the place for it"
    page.evaluate(DROP, [file.name, base64.b64encode(file.read_bytes()).decode()])


def drive_own_page(page, d):
    "Errors as sentences, then a page of one's own"
    page.locator(".lm-TabBar-tab", has_text="own page").last.click()
    wait(page, f"{STATUS}.includes('There is no picture yet')")
    (d/"broken.png").write_bytes(b"no picture")
    choose(page, d/"broken.png")
    wait(page, f"{STATUS}.includes('There is no question yet')")
    question = page.locator(".widget-text", has_text="question").locator("input").last
    question.fill("Which color is the brand?"); question.press("Enter")
    wait(page, f"{STATUS}.includes('roken.png: not a readable image')")
    drop(page, next((d/"cache").glob("r3nb/demo-*/raw/infovqa/images/*.png")))
    wait(page, f"{STATUS}.includes('own_') && {TEXT}.includes('Which color is the brand?')")
    assert "no reference" in page.evaluate(TEXT)


@pytest.mark.slow
def test_jupyterlab(lab, place):
    "Opened as `make lab` does, the explorer runs without a click"
    with browser_page(1500, 1000) as page:
        page.goto(lab, timeout=120_000)
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=90_000)
        drive(page, place[0])
        assert not page.outside


@pytest.mark.slow
def test_voila(voila, place):
    "In the dark theme, driven, then as narrow as a phone"
    with browser_page(1280, 1000) as page:
        page.goto(f"{voila}?theme=dark", timeout=120_000)
        drive(page, place[0])
        assert page.locator(".jp-InputArea-editor:visible, .highlight:visible").count() == 0, "code cells are shown"
        assert max(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3])) < 80
        assert not poor_contrast(page, "body *", 4)
        page.set_viewport_size({"width": 390, "height": 800})
        wait(page, "document.documentElement.scrollWidth <= 390")
        left, right = page.locator(".widget-slider").first.bounding_box(), page.locator(".r3").first.bounding_box()
        assert right["y"] > left["y"] and right["width"] <= 390
        assert not page.outside and not page.errors
