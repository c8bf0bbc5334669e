"""The explorer's logic, the views, the shipped weights and the sample world: no widget, no browser."""
import io
import threading
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r3nb import eval as ev
from r3nb.core import ConfigError, DataError, WorkerError, open_image, read_jsonl, read_records, sha256_file
from r3nb.corrupt import IMAGE_FAMILIES, corrupt
from r3nb.eval import Answer, Case, parse_mode
from r3nb.explorer import Ask, Explorer, Latest, Panel, demo_dir, demo_world, sentence, shipped_dir
from r3nb.indices import Evidence, Passage
from r3nb.metrics import score
from r3nb.mini import backbone_dir
from r3nb.model import R3Config, weights_sha256
from r3nb.own import ask_pages, page_records, pdf_pages
from r3nb.show import changes, dataclass_view, marked, show_answer, show_evidence, show_sample

NASTY = "\"><img src=x onerror=alert(1)><script>alert('x')</script>&<b>"


class Tags(HTMLParser):
    "All tags and attributes of a piece of HTML"
    def __init__(self, html): super().__init__(); self.tags, self.attributes, self.sources = set(), set(), set(); self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {k for k, _ in attrs}
        self.sources |= {v for k, v in attrs if k in ("src", "href")}


def harmless(view):
    found = Tags(view._repr_html_())
    assert "script" not in found.tags and not any(a.startswith("on") for a in found.attributes), found.attributes
    assert all(s.startswith("data:image/") for s in found.sources)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    "A cache folder of this test's own, so that the sample world is made from nothing"
    with pytest.MonkeyPatch.context() as m:
        m.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def explorer(cache): return Explorer.demo()


@pytest.fixture(scope="module")
def record(explorer): return explorer.samples("screenqa")[0]


# ---- what ships

def test_note_of_the_weights_is_about_these_files():
    d = shipped_dir()/"tiny-r3"
    note = (d/"README.md").read_text(encoding="utf-8")
    for name in ("adapter_model.safetensors", "modules.safetensors"): assert sha256_file(d/name) in note
    assert weights_sha256(backbone_dir()) in note and sum(f.stat().st_size for f in d.iterdir()) < 2**21


def test_sample_world_needs_no_ocr(explorer):
    known = {r["image_sha256"] for _, r in read_jsonl(shipped_dir()/"demo_ocr.jsonl")}
    missing = [p.name for p in explorer.root.glob("*/images/*.png") if sha256_file(p) not in known]
    assert not missing, "pages are rendered differently now; run: python scripts/weights.py --readings"


def test_sample_world_is_made_once(explorer):
    before = (demo_dir()/"index/index.json").stat().st_mtime_ns
    start = time.perf_counter()
    assert demo_world() == demo_dir() and (demo_dir()/"index/index.json").stat().st_mtime_ns == before
    assert time.perf_counter() - start < 2
    assert not [p for p in demo_dir().parent.iterdir() if p.name.startswith(".tmp-")]


def test_shipped_weights_do_what_the_study_says(explorer):
    "At λ = 0.6 R3 beats the backbone clearly, and rag; these pages were in no training"
    records, mean = list(explorer.records.values()), {}
    cases = [Case(r, .6, 0, corrupt(r, explorer.page(Ask(r.sample_id))[1], .6, 0)) for r in records]
    found = ev.find_evidence(explorer.index, cases, ["retrieved"], 3)["retrieved"]
    for m in ("base", "rag", "r3"):
        answers = explorer.readers.answer(parse_mode(m), cases, None if m == "base" else found)
        mean[m] = np.mean([score(r.dataset, a.text, r.answers)["score"] for r, a in zip(records, answers, strict=True)])
    assert mean["r3"] > mean["base"] + .25 and mean["r3"] > mean["rag"], mean


# ---- the explorer shows what an evaluation counts

def test_damage_evidence_and_answers_are_those_of_an_evaluation(explorer, record):
    cfg = replace(explorer.readers.cfg, eval_mode=["base", "rag", "r3"], out_dir="unused")
    case = ev.damage([record], "drawn", .6, 3, cfg)[0]
    found = ev.find_evidence(explorer.index, [case], ["retrieved"], cfg.top_k)["retrieved"]
    shown = explorer(Ask(record.sample_id, .6, 3))
    assert shown.seen.image.tobytes() == case.seen.image.tobytes() and shown.seen.pseudo_text == case.seen.pseudo_text
    assert shown.found == found[0]
    for m, a in shown.answers.items(): assert a == explorer.readers.answer(parse_mode(m), [case], found if m != "base" else None)[0], m


def test_level_0_is_the_page_itself(explorer, record):
    shown = explorer(Ask(record.sample_id, 0))
    assert shown.seen.image.tobytes() == shown.clean.tobytes() and shown.seen.pseudo_text == record.pseudo_text
    assert "λ = 0: nothing" in shown.view().body


@pytest.mark.parametrize("families", [("occlusion",), ("gaussian_blur", "token_drop"), ("char_confusion",)])
def test_ticked_families_are_all_that_is_done(explorer, record, families):
    shown = explorer(Ask(record.sample_id, .7, families=families))
    assert set(shown.seen.families) == set(families)
    assert (shown.seen.image.tobytes() == shown.clean.tobytes()) == (not set(families) & set(IMAGE_FAMILIES))


def test_every_part_can_be_switched_off(explorer, record):
    assert "selection" not in explorer.parts()
    for part in explorer.parts():
        answers = explorer(Ask(record.sample_id, .6, off=(part,))).answers
        assert list(answers) == ["base", "rag", f"r3-{part}"]
    without = explorer(Ask(record.sample_id, .6, off=("text_retrieval", "image_retrieval"))).answers
    assert "Evidence:" not in list(without.values())[-1].prompt and "Evidence:" in without["rag"].prompt


def test_answers_within_three_seconds(explorer, record):
    explorer(Ask(record.sample_id, .5))
    assert np.median([explorer(Ask(record.sample_id, level)).seconds for level in (.2, .4, .8)]) < 3


def test_estimated_map_follows_the_measured_one(explorer):
    pages = list({r.image_id: r for r in explorer.records.values()}.values())[::2]
    shown = [explorer(Ask(r.sample_id, .6, families=("occlusion",))) for r in pages]
    assert np.mean([np.corrcoef(s.estimate.ravel(), s.seen.c_vis_map.ravel())[0, 1] for s in shown]) > .4
    assert all(s.estimate.shape == (8, 8) and 0 <= s.estimate.min() <= s.estimate.max() <= 1 for s in shown)


# ---- own pages

def png(image):
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def test_own_page_never_gets_itself_as_evidence(explorer):
    doc = explorer.index.pages.read(0, 1)[0]
    image = open_image(explorer.root/doc["image_path"])
    shown = explorer(Ask(picture=png(image), question="For this company, what is the Sales?", level=0))
    assert doc["image_id"] not in {e.image_id for c in shown.found.values() for e in c} and shown.found["text"]
    assert shown.record.pseudo_text and shown.record.answers == [] and "no reference" in shown.view().body
    known = explorer(Ask(picture=png(image), question="What is it?", answer="12", level=0))
    assert known.record.answers == ["12"] and "no reference" not in known.view().body


def test_own_page_is_read_once(explorer, monkeypatch):
    class Counting:
        calls = 0
        def __call__(self, image): self.calls += 1; return type("R", (), {"text": " Total  7 ", "conf": .9})()
    engine = Counting()
    monkeypatch.setattr(explorer, "engine", engine)
    picture = png(Image.new("RGB", (3000, 2000), "white"))
    for level in (0, .3, .6): shown = explorer(Ask(picture=picture, question="Total?", level=level))
    assert engine.calls == 1 and shown.record.pseudo_text == "Total 7" and shown.clean.size == (3000, 2000)


@pytest.mark.parametrize("ask, said", [
    (Ask(), "there is no picture yet"), (Ask(picture=b"x"), "there is no question yet"), (Ask(picture=b"x", question="?", name="a.heic"), "a.heic: not a readable image"),
    (Ask("screenqa_val_00"), "did you mean"), (Ask("screenqa_val_0", 2.), "outside 0 to 1"), (Ask("screenqa_val_0", families=("blurr",)), "did you mean"),
    (Ask("screenqa_val_0", off=("gat",)), "does not fit")])
def test_mistakes_are_sentences(explorer, ask, said):
    with pytest.raises((ConfigError, DataError, Exception)) as e: explorer(ask)
    assert said in sentence(e.value) and "\n" not in sentence(e.value)


# ---- the newest request wins

def test_newest_request_wins_and_submitting_never_waits():
    hold, seen, worked = threading.Event(), [], []
    def work(n): worked.append(n); hold.wait(10); return n
    latest = Latest(work, lambda result, said: seen.append(result))
    start = time.perf_counter()
    for n in range(50): latest.submit(n)
    assert time.perf_counter() - start < .5
    hold.set()
    assert latest.idle.wait(10) and seen == [49] and len(worked) <= 2


def test_errors_become_sentences_and_work_goes_on():
    seen = []
    latest = Latest(lambda n: 10//n if n else 1/0, lambda result, said: seen.append(said or result))
    for n in (0, 5):
        latest.submit(n)
        assert latest.idle.wait(10)
    assert "ZeroDivisionError" in seen[0] and "\n" not in seen[0] and seen[1] == 2


def test_many_threads_may_submit():
    seen = []
    latest = Latest(lambda n: n, lambda result, said: seen.append(result))
    threads = [threading.Thread(target=lambda: [latest.submit(i) for i in range(200)]) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    latest.submit("last")
    assert latest.idle.wait(10) and seen[-1] == "last"


# ---- the panel, without a browser

def test_panel_wakes_up_and_answers(explorer):
    panel = Panel(lambda: explorer)
    assert panel.latest.idle.wait(60) and not panel.k["level"].disabled
    assert panel.k["dataset"].value == "chartqa" and panel.ask().sample_id in explorer.records and "λ = 0.6" in panel.view.value
    panel.k["dataset"].value = "infovqa"
    assert panel.latest.idle.wait(60) and panel.ask().sample_id.startswith("infovqa") and "infovqa" in panel.status.value
    panel.k["families"]["crop"].value = True
    panel.k["parts"]["memory"].value = False
    assert panel.latest.idle.wait(60) and "r3-memory" in panel.view.value and "λ = 0.6: crop" in panel.view.value


def test_panel_takes_an_own_page(explorer):
    panel = Panel(lambda: explorer)
    assert panel.latest.idle.wait(60)
    panel.tabs.selected_index = 1
    assert panel.latest.idle.wait(60) and "There is no picture yet" in panel.status.value
    picture = next(explorer.root.glob("screenqa/images/*.png")).read_bytes()
    panel.k["upload"].value = {"name": "page.png", "content": memoryview(picture)}
    assert panel.latest.idle.wait(60) and "There is no question yet" in panel.status.value
    panel.k["question"].value = "Which color is the brand?"
    assert panel.latest.idle.wait(60) and "own_" in panel.status.value and "Which color is the brand?" in panel.view.value


def test_panel_offers_some_of_very_many_questions(explorer, record):
    many = Explorer([replace(record, sample_id=f"screenqa_val_{i}") for i in range(3000)], explorer.index, explorer.readers)
    panel = Panel(lambda: many)
    assert panel.latest.idle.wait(60)
    ids = [v for _, v in panel.k["sample"].options]
    assert len(ids) == 500 and ids[0] == "screenqa_val_0" and ids[-1] == "screenqa_val_2999"


def test_panel_says_why_it_cannot_open():
    def opener(): raise DataError("val.jsonl: no such file; check the path")
    panel = Panel(opener)
    assert panel.latest.idle.wait(10) and "Val.jsonl: no such file" in panel.status.value and panel.k["level"].disabled


def test_no_place_for_the_sample_world(tmp_path, monkeypatch):
    (tmp_path/"file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"file"))
    with pytest.raises(OSError) as e: demo_world()
    assert sentence(e.value).startswith("cannot read or write")


def test_failed_sample_world_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path/"sitecustomize.py").write_text("import sys\nsys.exit('error: no luck today')\n")
    with pytest.raises(WorkerError, match="no luck today"): demo_world()
    assert not demo_dir().exists()


# ---- views

def test_views_run_nothing_that_a_document_says(record):
    bad = replace(record, sample_id=NASTY, image_id=NASTY, question=NASTY, answer=NASTY, answers=[NASTY], pseudo_text=f"{NASTY} a", meta={NASTY: NASTY})
    image = Image.new("RGB", (64, 64), "white")
    found = {"text": [Evidence(NASTY, NASTY, NASTY, .5, "text", 0, (Passage(NASTY, .5, 0, 0),))], "image": []}
    answer = Answer(NASTY, NASTY, [.2, .3, .5], [.1, .2])
    seen = corrupt(bad, image, .5)
    views = [show_sample(bad, image), show_sample(bad, image, seen), show_evidence(found, None, [NASTY], {"text": NASTY, "passages": [{"image_id": NASTY, "channel": "text", "text": NASTY}]}), show_answer(bad, {NASTY: answer}),
             bad, seen, answer, found["text"][0], Case(bad, .5, 0, seen), dataclass_view(bad), R3Config(suffix=NASTY)]
    for v in views: harmless(v)


@pytest.mark.parametrize("a, b, kinds", [("", "", []), ("a", "", ["lost"]), ("", "a", ["added"]), ("a b c", "a x c", ["same", "broken", "same"]), ("a b", "b", ["lost", "same"])])
def test_changes_of_a_text(a, b, kinds):
    found = changes(a, b)
    assert [k for k, *_ in found] == kinds
    assert " ".join(was for _, was, _ in found if was) == a and " ".join(now for *_, now in found if now) == b
    assert marked("", "") == "<em>no text</em>"


def test_a_card_shows_what_was_read():
    page = lambda name: Evidence(name, name, "Sales 12 Visits 9", .5, "text", 0, (Passage("Visits 9", .5, 1, 1), Passage("Sales 12", .4, 0, 0)))
    found, shown = {"text": [page("p"), page("q")]}, {"text": "", "passages": [{"image_id": "q", "channel": "text", "text": "Visits 9"}]}
    first, second = (h.split("</div>")[0] for h in show_evidence(found, None, [], shown).body.split('<div class="card">')[1:])
    assert "not read" in first and "Sales 12 Visits 9" in first and "read by the model" in second and second.endswith("Visits 9") and "Sales" not in second
    assert "read by" not in show_evidence(found).body and "not read" not in show_evidence(found).body


# ---- documents of one's own

def test_pdf_to_scores(tmp_path):
    pages = [Image.new("RGB", (300, 200), c) for c in ("white", "navy")]
    pages[0].save(tmp_path/"a.pdf", save_all=True, append_images=pages[1:])
    files = pdf_pages(tmp_path/"a.pdf", tmp_path/"raw", dpi=72)
    assert np.allclose([Image.open(f).getpixel((5, 5)) for f in files], [(255, 255, 255), (0, 0, 128)], atol=3)
    for dpi in (0, 5000):
        with pytest.raises(ConfigError, match="expected 36 to 600"): pdf_pages(tmp_path/"a.pdf", tmp_path/"raw", dpi)
    with pytest.raises(ConfigError, match="unknown metric"): page_records(tmp_path/"raw", metric="anlz")


def test_questions_about_own_pages(record):
    page = replace(record, image_id="a/1")
    assert ask_pages([page], [{"page": "a/1", "question": "?", "answers": ["x", " ", "y"]}])[0].answers == ["x", "y"]
    assert ask_pages([page], [{"page": "a/1", "question": "?"}])[0].answers == []
    with pytest.raises(DataError, match="question 0: there is no page"): ask_pages([page], [{"page": "a/2", "question": "?"}])


def test_records_of_the_sample_world_are_valid(explorer):
    for split in ("train", "val"): assert read_records(demo_dir()/f"{split}.jsonl", explorer.root, check_images=True)
    assert Path(explorer.root).is_relative_to(demo_dir())
