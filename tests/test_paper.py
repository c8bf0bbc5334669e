"""The figures of the story: sizes, texts, captions in step with the published results."""
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Text

from r3nb.core import read_json
from r3nb.explorer import shipped_dir
from r3nb.model import R3Config
from r3nb.paper import (PAGE, StoryConfig, captions, draw_story, forms_figure, gate_map_figure, hallucination_figure, keep, measure_cost, overview_figure)

ROOT = Path(__file__).parent.parent
RESULTS, FIGURES = ROOT/"nbs/results/mini-full/results.json", ROOT/"nbs/figures"


@pytest.fixture(scope="module")
def pooled(): return read_json(RESULTS)["pooled"]


@pytest.mark.parametrize("make", [forms_figure, hallucination_figure, gate_map_figure, lambda s: overview_figure()])
def test_fits_a_page_and_can_be_read(pooled, make):
    fig = make(pooled)
    assert fig.get_size_inches()[0] <= PAGE
    assert min(t.get_fontsize() for t in fig.findobj(Text) if t.get_text().strip()) >= 6.5
    plt.close(fig)


def test_captions_of_the_shipped_figures_are_in_step(pooled):
    text = (FIGURES/"captions.md").read_text(encoding="utf-8")
    for name, caption in captions(pooled).items(): assert caption in text, f"{name}: run python scripts/story.py"
    for name in ("overview", "robustness", "hallucination", "gate_map", "ablations", "gallery", "evidence"):
        assert (FIGURES/f"{name}.png").is_file() and (FIGURES/f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_efficiency_table_is_about_the_shipped_weights():
    table = (FIGURES/"efficiency.md").read_text(encoding="utf-8")
    saved = read_json(shipped_dir()/"tiny-r3/r3_config.json")["config"]
    assert saved["lora_r"] and "| r3 |" in table and "LoRA 104,448" in table


def test_drawing_is_a_drawing_and_always_the_same(tmp_path):
    a, b = keep(overview_figure(), tmp_path/"a").read_text(), keep(overview_figure(), tmp_path/"b").read_text()
    assert a == b and "<image" not in a and ">text channel<" in a.replace("</tspan>", "")
    assert not [u for u in a.split('"') if u.startswith("http") and "w3.org" not in u and "purl.org" not in u and "matplotlib.org" not in u and "creativecommons" not in u]


@pytest.mark.parametrize("flags, gone", [({"disable_prefix": True}, "prefix"), ({"n_memory": 0}, "visual memory"), ({"disable_latent_tokens": True}, "latent"),
                                         ({"disable_soft_prefix": True}, "prefix"), ({"disable_context": True}, "pages that are kept")])
def test_parts_that_are_off_are_not_drawn(flags, gone):
    words = lambda c: " ".join(t.get_text() for t in overview_figure(c).findobj(Text))
    assert gone in words(R3Config()) and gone not in words(R3Config(**flags))
    plt.close("all")


def test_a_run_without_r3_has_a_story_too(pooled, tmp_path):
    keep_modes = lambda rows: [r for r in rows if r.get("mode", r.get("a")) in ("base+text", "rag")]
    less = pooled | {k: keep_modes(pooled[k]) for k in ("scores", "gates", "ablations", "differences")}
    from r3nb.core import write_json
    files = draw_story(StoryConfig(str(write_json(tmp_path/"summary.json", less)), str(tmp_path/"story")))
    assert "gate_map" not in files and "ablations" not in files and "not run" in captions(less)["hallucination"]


def test_cost_is_a_ratio_of_rounds():
    from types import SimpleNamespace
    now = [0.]
    def answer(mode): now[0] += {"a": 1, "b": 3}[mode]; return [SimpleNamespace(prompt="x y")]
    rows = measure_cost(answer, lambda s, **_: {"input_ids": s.split()}, ("a", "b"), 3, lambda: now[0])
    assert [(r["time_ratio"], r["low"], r["high"], r["prompt_tokens"]) for r in rows] == [(1, 1, 1, 2), (3, 3, 3, 2)]
