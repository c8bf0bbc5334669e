"""Pages of 600 to 1,100 words: a fact is found wherever on a sibling page it stands, and its passage comes first."""
from types import SimpleNamespace

import numpy as np
import pytest
from test_indices import page, record
from test_scale import Pixels

from r3nb.core import rng
from r3nb.indices import EvidenceIndex, TextEncoder, encode_queries, retrieve
from r3nb.metrics import word_line

N, K = 12, 3 # questions, pages found
PLACES = {"first lines": .02, "middle": .5, "last lines": .98}
TOWNS = "Vinterholm Arlesey Quimper Tavira Zadar Bergamo Lulea Sintra Colmar Ghent Turku Split".split()
KINDS = "museum harbour library stadium airport hospital theatre market university brewery cathedral aquarium".split()
WORDS = ("river signal garden north copper winter station letter engine silver morning paper bridge window figure yellow travel summer record carbon island ticket "
         "butter camera planet forest circle number public doctor energy animal budget family report screen memory people annual global average street water stone "
         "price member council school project service traffic region country village weather railway history holiday kitchen").split()


def filler(g, words):
    "Lines of 4 to 12 words, some with numbers."
    lines, n = [], 0
    while n < words:
        line = [str(w) for w in g.choice(WORDS, int(g.integers(4, 13)))]
        if g.random() < .4: line[-1] = f"{int(g.integers(10, 99999)):,}"
        lines.append(" ".join(line).capitalize())
        n += len(line)
    return lines


def long_page(g, fact, place, topic):
    "A page about a topic that states a fact at one place."
    lines = filler(g, int(g.integers(600, 1100)))
    for k in g.choice(len(lines), 4, replace=False): lines[k] = f"{topic} {lines[k].lower()}"
    if fact: lines.insert(min(len(lines), max(0, round(place * len(lines)))), fact)
    return "\n".join(lines)


def records_at(place, seed=0):
    "For each question its own page and a sibling that states the fact."
    out = []
    for i, (town, kind) in enumerate(zip(TOWNS, KINDS, strict=True)):
        g = rng("long pages", seed, i)
        answer, topic = f"{int(g.integers(1000, 99999)):,}", f"{town} {kind}"
        more = dict(question=f"How many visitors did the {kind} of {town} count in 2019?", answer=answer, answers=[answer], meta={"entity": topic})
        fact = f"In 2019 the {kind} of {town} counted {answer} visitors"
        out += [record(2 * i, pseudo_text=long_page(g, fact, float(g.random()), topic), **more), record(2 * i + 1, pseudo_text=long_page(g, fact, place, topic), **more)]
    return out


def damaged(r, level, seed=0):
    "A record whose own text has lost letters, words and the fact."
    g, text = rng("damage", seed, r.sample_id), r.pseudo_text.replace(r.answer, "")
    keep = [w if g.random() > level else w[:-2] + w[-1:] for w in text.split(" ") if g.random() > level / 3]
    return SimpleNamespace(question=r.question, pseudo_text=" ".join(keep), image=None)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("long")
    (root / "w/images").mkdir(parents=True)
    for i in range(2 * N): page(i).save(root / f"w/images/{i}.png")
    return root


@pytest.fixture(scope="module")
def text(): return TextEncoder()


def found_by_place(root, text, **kw):
    "Per place: how often the sibling is found, and how often by the passage that states the fact; at levels 0 and .6."
    out = {}
    for name, place in PLACES.items():
        records = records_at(place)
        index = EvidenceIndex.build(records, root, root / "i", text, Pixels(), overwrite=True, **kw)
        own = records[::2]
        for level in (0, .6):
            found = retrieve(index, own, [damaged(r, level) for r in own], K, ("text",))
            hits = [(e.passages, word_line(r.answer)) for r, f in zip(own, found, strict=True) for e in f["text"] if e.image_id == f"w/{int(r.image_id[2:]) + 1:02d}"]
            out[name, level] = len(hits), sum(line in word_line(ps[0].text) for ps, line in hits), sum(any(line in word_line(p.text) for p in ps[:3]) for ps, line in hits)
    return out


def test_facts_are_found_anywhere(root, text):
    found = found_by_place(root, text)
    print(found)
    for level in (0, .6):
        first, middle, last = (found[p, level] for p in PLACES)
        assert min(first[1], middle[1], last[1]) >= .75 * N, found
        assert last[1] >= first[1] - 1 and middle[1] >= first[1] - 1, found
