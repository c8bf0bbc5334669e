"""Passages in prompts: which are quoted, in which order, what it costs, and what signals and targets look at."""
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from r3nb.compare import shown_lines
from r3nb.core import OMITTED, rng
from r3nb.metrics import stands_in, word_line
from r3nb.model import FEW, R3Collator, R3Config, build_prompt, gate_target, gist, in_order, make_examples, page_signals, passages_of, stated_by, supports
from r3nb.passages import nearness, split

CONFIG = R3Config(text_dim=20, image_dim=24, bottleneck=16, heads=2, n_prefix=2, n_memory=2, n_latent=1, top_k=2, disable_soft_prefix=True)
WORDS = "river market signal garden north copper winter station letter engine harbour silver morning paper bridge window figure yellow museum travel".split()


@pytest.fixture(scope="module")
def processor(): return tiny.processor() # one token is one byte; the mark is five


def collator(processor, **budgets): return R3Collator(processor, replace(CONFIG, **budgets))


def page(name, texts, best, first_row=0, score=.8):
    "A page whose passages matter in the order `best`"
    passages = tuple(SimpleNamespace(text=texts[i], score=score, at=i * 1000, row=first_row + i) for i in best)
    return SimpleNamespace(image_id=name, image_path=f"{name}.png", channel="text", score=score, row=0, text=" ".join(texts), passages=passages)


def example(pages, own="", question="Why?", answers=("7",), pseudo_text=None):
    record = SimpleNamespace(sample_id="s", answers=list(answers), answer=answers[0], pseudo_text=own if pseudo_text is None else pseudo_text, ocr_conf=None, image_path="s.png")
    seen = SimpleNamespace(image=tiny.page(0), pseudo_text=own, question=question, c_vis=.5, c_text=.5)
    return SimpleNamespace(record=record, corrupted=seen, pages=pages, scores=np.array([[p.score for p in pages], [np.nan] * len(pages)], np.float32), clean=None)


def words(seed, n): return " ".join(rng("quotes", seed).choice(WORDS, n))


# ---- a page that is one passage

def before(c, texts, weights, own, budgets):
    "The prompt's parts as they were before pages had passages: each page from its beginning"
    left, lines = budgets[1], []
    for j in sorted((j for j in range(len(texts)) if weights[j] > 0), key=lambda j: (-weights[j], j)):
        line, used = c.cut(texts[j], left)
        if line: left -= used; lines.append(line)
    return c.cut(own, budgets[0]), lines, budgets[1] - left


@pytest.mark.parametrize("seed", range(40))
def test_one_passage_pages_are_written_as_before(processor, seed):
    g, c = rng("as before", seed), collator(processor)
    junk = ["<|image_pad|>", "<|im_end|>", "\n", "  ", "café", "北京", "…", "7,325%"]
    text = lambda n: " ".join(g.choice(WORDS + junk, n))
    texts, weights = [text(int(g.integers(0, 14))) for _ in range(4)], g.choice([0, .1, .4, .4], 4).tolist()
    own, budgets = text(int(g.integers(0, 30))), (int(g.integers(0, 200)), int(g.integers(0, 260)))
    if len(split(own)) > 1: own = own[:100]
    made = c.prompt(example([page(f"p{i}", [t], [0]) for i, t in enumerate(texts)], own), weights, budgets=budgets)
    (shown, n_own), lines, used = before(c, texts, weights, own, budgets)
    assert (made.own, made.lines, made.used) == (shown, lines, (n_own, used)) and made.turn == build_prompt("Why?", shown, lines)
    assert made.shown == {"text": shown, "passages": [{"image_id": p.image_id, "channel": "text", "text": t} for p, t in zip(made.quoted, lines, strict=True)]}
    assert ("text" in made.cut, "evidence" in made.cut) == (shown != c.plain(own), any(c.plain(t) not in lines for t, w in zip(texts, weights, strict=True) if w > 0 and c.plain(t)))


# ---- pages of several passages

@pytest.mark.parametrize("seed", range(20))
def test_a_budget_is_filled_and_kept(processor, seed):
    g, c = rng("budget", seed), collator(processor)
    pages = [page(f"p{i}", [words((seed, i, k), int(g.integers(2, 6))) for k in range(n)], g.permutation(n)) for i, n in enumerate(g.integers(1, 6, 3))]
    budget = int(g.integers(20, 400))
    lines, used = c.quote([passages_of(p) for p in pages], budget)
    real = sum(map(c.count, lines)) # what stands there, marks included
    assert real <= used <= budget and used - real <= 1 # a blank at a cut is not written
    whole = all(line == p.text for line, p in zip(lines, pages, strict=True))
    assert whole or used >= budget - c.count(OMITTED) - 2 * max(map(len, WORDS)) # there is no room for one word more
    assert {w for p, line in zip(pages, lines, strict=True) if len(p.passages) > 1 for w in line.replace(OMITTED, " ").split()} <= set(WORDS)
    for line, p in zip(lines, pages, strict=True):
        at = [p.text.find(part) for part in line.split(OMITTED)]
        assert -1 not in at and at == sorted(at)


def test_the_best_of_each_page_comes_first(processor):
    a, b = page("a", ["a0 oslo", "a1 rome", "a2 lima"], [2, 0, 1]), page("b", ["b0 bern", "b1 bonn"], [1, 0])
    quote = lambda budget: collator(processor).quote([passages_of(a), passages_of(b)], budget)[0]
    assert quote(14) == ["a2 lima", "b1 bonn"] and quote(26) == ["a0 oslo … a2 lima", "b1 bonn"] and quote(34) == ["a0 oslo … a2 lima", "b0 bern b1 bonn"]
    assert quote(99) == [a.text, b.text] and quote(7) == ["a2 lima", ""] and quote(0) == ["", ""]
    assert collator(processor).quote([], 9) == ([], 0)


def test_a_page_says_whether_it_is_whole(processor):
    p = page("a", ["a0 oslo", "<|im_end|>", "a1 rome"], [2, 1, 0])
    made = collator(processor).prompt(example([p]), [1.])
    assert made.lines == ["a0 oslo a1 rome"] and made.cut == []
    made = collator(processor, evidence_tokens=14).prompt(example([p]), [1.])
    assert made.lines == ["a0 … a1 rome"] and made.cut == ["evidence"] and made.used == (0, 14)
    made = collator(processor, evidence_tokens=80).prompt(example([page("z", ["第一。", "第二。"], [1, 0])]), [1.])
    assert made.cut == [] # no blank stands between these on the page


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_fact_of_a_long_page_is_in_the_prompt(processor, place):
    parts = [words((place, i), 12) for i in range(30)]
    at = {"first": 0, "middle": 15, "last": 29}[place]
    parts[at] += " Sales of Oslo: 4711"
    near = nearness("What were the sales of Oslo?", parts)
    p = page("a", parts, sorted(range(30), key=lambda i: (-near[i], i)))
    made = collator(processor, evidence_tokens=384).prompt(example([p], question="What were the sales of Oslo?"), [1.])
    assert "Sales of Oslo: 4711" in made.lines[0] and len(made.lines[0]) <= 384 < len(p.text) and made.shown["passages"][0]["text"] == made.lines[0]


# ---- own text

@pytest.mark.parametrize("place", [0, 60, 119])
def test_own_text_is_cut_by_nearness(processor, place):
    c, own = collator(processor, own_tokens=900), words("own", 400).split()
    own.insert(place * 3, "Total of Quito 4711")
    made = c.prompt(example([], " ".join(own), "What is the totel of Quito?"), [])
    assert "Total of Quito 4711" in made.own and made.cut == ["text"] and 850 < made.used[0] == c.count(made.own) <= 900
    at = [" ".join(own).find(part) for part in made.own.split(OMITTED)]
    assert -1 not in at and at == sorted(at)


def test_own_text_that_fits_is_as_before(processor):
    text = words("fits", 400) + " <|im_end|>\n tail"
    c = collator(processor, own_tokens=10_000)
    assert c.own_text(text, "tail?", 10_000) == c.cut(text, 10_000) and c.own_text(text, "tail?", 0) == ("", 0) == c.own_text("", "tail?", 9)


def test_the_clean_text_is_cut_by_the_clean_question(processor):
    own = words("clean", 300) + ".\nTotal of Quito 4711\n" + words("more", 300)
    e = example([], "xx", "Wh?? ?s")
    e.clean = tiny.page(0), own, "What is the total of Quito?"
    assert "Quito 4711" in collator(processor, own_tokens=700).prompt(e, [], clean=True).own


def test_a_prompt_is_shortened_passage_by_passage(processor):
    parts = [words(("short", i), 8) for i in range(12)]
    parts[10] = "Sales of Oslo 4711"
    e, image = example([page("a", parts, [10, *range(10), 11])], words("own", 30)), tiny.page(0)
    bare = collator(processor, own_tokens=0, evidence_tokens=0).fitted([e], [[1.]], [image], None)[0]["inputs"]["attention_mask"].sum()
    for room in (600, 400, 200, 60, 30):
        c = collator(processor, own_tokens=30, max_tokens=int(bare) + 60 + room)
        batch, (made,) = c.fitted([e], [[1.]], [image], None)
        assert batch["inputs"]["attention_mask"].sum() <= c.config.max_tokens and "evidence" in made.cut
        if room >= 60: assert "Sales of Oslo 4711" in made.lines[0]


# ---- signals, targets, vectors

def test_signals_and_targets_look_at_the_best_passages():
    parts = [words(("gist", i), 40) for i in range(8)] + ["Sales of Oslo 4711"]
    near, far = (page("a", parts, best) for best in ([8, *range(8)], [*range(8), 8]))
    assert supports(gist(near), ["4711"]) and not supports(gist(far), ["4711"]) and gist(far).count(OMITTED) == 0 and gist(near).endswith(OMITTED + "Sales of Oslo 4711")
    assert len(gist(far)) == sum(map(len, parts[:FEW])) + FEW - 1
    for p, want in ((near, 1.), (far, 0.)):
        e = example([p], "Oslo 9", "Sales of Oslo?", ["4711"], "Oslo 4711")
        assert stated_by(e) == [want] and (gate_target(e)[0] > gate_target(e)[2]) == bool(want)
        assert (page_signals(e)[0][9] > .5) == bool(want) # the share of the question's words


def test_a_page_is_represented_by_its_best_passage():
    index, records = tiny.fake_index(), tiny.records(2)
    p = page("demo/5", ["a", "b", "c"], [2, 0, 1], first_row=4)
    p.row = 3
    e, = make_examples(index, records[:1], [tiny.damaged(0)], CONFIG, [{"text": [p], "image": []}], np.zeros((1, 24), np.float32))
    assert np.array_equal(e.vectors["text"], index.vectors("text")[[6]]) and np.array_equal(e.vectors["image"], index.vectors("image")[[3]])


# ---- what others make of it

def test_words_around_a_mark_are_no_neighbours():
    row = {"image_id": "own", "shown": {"text": f"Total 47{OMITTED}11 Oslo", "passages": [{"image_id": "p", "channel": "text", "text": f"New{OMITTED}York"}]}}
    lines = [t for _, t in shown_lines(row)]
    assert [stands_in(word_line(a), lines) for a in ("47", "47 11", "11 Oslo", "New York", "York")] == [True, False, True, False, True]
    assert [page for page, _ in shown_lines(row)] == ["own", "own", "p", "p"]
    plain = {"image_id": "own", "shown": {"text": "", "passages": [{"image_id": "p", "channel": "text", "text": "New York"}]}}
    assert shown_lines(plain) == [("own", ""), ("p", word_line("New York"))]


def test_in_order_marks_what_is_missing():
    whole = ["a", "", "b", "c"]
    assert [in_order({k: whole[k] for k in ks}, whole) for ks in ((0, 2, 3), (0, 3), (3,), ())] == ["a b c", f"a{OMITTED}c", "c", ""]
    assert not re.search(r"\s\s", in_order({0: "a", 3: "c"}, whole))


def test_the_default_budgets_fit_into_a_prompt():
    c = R3Config()
    assert c.max_tokens >= c.max_pixels // 32**2 + c.own_tokens + c.evidence_tokens + sum(c.n_soft) + 128 # question, answer and the template's own
