"""Pages of 600 to 1,100 words: a fact is found wherever on a sibling page it stands, and its passage comes first."""
from types import SimpleNamespace

import numpy as np
import pytest
from test_indices import page, record
from test_scale import Pixels, Words

from r3nb.core import ConfigError, rng, sha256_file, write_jsonl
from r3nb.corrupt import corrupt
from r3nb.encoders import TextEncoder
from r3nb.evidence import EvidenceStore, Grid, claim, fill_block
from r3nb.indices import EvidenceIndex, encode_queries, nearest_first, retrieve
from r3nb.metrics import word_line
from r3nb.passages import Cut

N, K = 6, 3 # questions, pages found
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
    for i, (town, kind) in enumerate(zip(TOWNS[:N], KINDS, strict=False)):
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
    for level in (0, .6):
        first, middle, last = (found[p, level] for p in PLACES)
        assert min(first[1], middle[1], last[1]) >= N - 1, found
        assert last[1] >= first[1] and last[2] == middle[2] == N, found


def test_whole_pages_lose_their_ends(root, text):
    "What was true before there were passages: the vector of a page knows nothing of its end."
    ends = [f"{r.pseudo_text}\nIn 2019 nothing happened here" for r in records_at(.5)[:2]]
    assert (text.encode(ends) == text.encode([r.pseudo_text for r in records_at(.5)[:2]])).all()


def test_no_passage_is_longer_than_what_is_read(root, text):
    hard = ["\n".join(f"Δελτίο {i} τιμή {i * 97}" for i in range(90)), "数据" * 300, "x1" * 500]
    cut = Cut(100, text)
    for t in hard:
        parts = [t[a:b] for a, b in cut(t)]
        assert max(map(text.count, parts)) <= text.limit == 254 and "".join("".join(parts).split()) == "".join(t.split())
        assert max(map(text.count, parts)) > 60 # and no crumbs


# ---- with stand-in encoders: what must not change, and what must agree

def build(root, out, records, **kw): return EvidenceIndex.build(records, root, out, Words(), Pixels(), 4, **kw)


def shorts(n=9): return [record(i, pseudo_text=f"page{i} says {'word ' * i}fact{i}", answers=[f"fact{i}"]) for i in range(n)]


def longs(n=9): return [record(i, pseudo_text=long_page(rng("cheap", i), f"the fact is fact{i // 2}", .98, f"page{i}"), answers=[f"fact{i // 2}"], answer=f"fact{i // 2}") for i in range(n)]


def test_pages_of_one_passage_are_what_they_were(root, tmp_path):
    old, new = build(root, tmp_path / "old", shorts(), passage_tokens=0), build(root, tmp_path / "new", shorts())
    assert (old.info["format"], new.info["format"]) == (2, 3) and not (tmp_path / "old/spans.npy").exists() and not new.passages.several
    for name in ("text_vectors.npy", "image_vectors.npy", "hashes.npy", "documents.arrow", "text.faiss", "image.faiss", "ids.npy"):
        assert (tmp_path / "old" / name).read_bytes() == (tmp_path / "new" / name).read_bytes(), name
    seen = [SimpleNamespace(question=r.question, pseudo_text=r.pseudo_text, image=page(i)) for i, r in enumerate(shorts())]
    for mode in ("retrieved", "shuffled", "random"):
        a, b = (retrieve(i, shorts(), seen, 4, mode=mode) for i in (old, new))
        assert a == b and all(len(e.passages) == 1 and e.passages[0].text == e.text for f in a for es in f.values() for e in es)


def test_an_index_of_whole_pages_is_opened_and_stays_one(root, tmp_path, capsys):
    build(root, tmp_path / "i", longs(6), passage_tokens=0)
    capsys.readouterr()
    old = EvidenceIndex.load(tmp_path / "i", Words(), Pixels())
    assert "pages are kept whole here" in capsys.readouterr().err
    grown = old.add(longs(8))
    assert grown.info["format"] == 2 and len(grown.text_vectors) == 8 and len(grown.remove(["w/00"]).text_vectors) == 7
    with pytest.raises(ConfigError, match="passage_tokens was 0, is 100"): build(root, tmp_path / "i", longs(8))
    with pytest.raises(ConfigError, match="passage_tokens is 3, expected 10 or more, or 0"): build(root, tmp_path / "x", longs(), passage_tokens=3)
    capsys.readouterr()
    build(root, tmp_path / "short", shorts(), passage_tokens=0)
    assert "kept whole" not in capsys.readouterr().err


def test_every_page_once_with_all_its_passages(root, tmp_path):
    index, records = build(root, tmp_path / "i", longs()), longs()
    seen = [SimpleNamespace(question="fact?", pseudo_text=r.pseudo_text, image=page(i)) for i, r in enumerate(records)]
    vectors, exact = encode_queries(index, seen), index.passages
    for i, f in enumerate(retrieve(index, records, seen, 8)):
        best = [max(np.round((index.text_vectors[exact.rows([p])[0]] @ vectors["text"][i]).astype("float64"), 5)) for p in range(9)]
        assert [e.row for e in f["text"]] == [p for p in sorted(range(9), key=lambda p: (-best[p], p)) if p != i]
        for c, es in f.items():
            assert len({e.image_id for e in es}) == 8
            for e in es:
                assert sorted(p.at for p in e.passages) == list(range(len(e.passages))) and len(e.passages) > 4
                assert all(p.text in e.text and abs(p.score - index.text_vectors[p.row] @ vectors["text"][i]) < 2e-5 for p in e.passages)
                if c == "text": assert abs(max(p.score for p in e.passages) - e.score) < 2e-5
    alone = retrieve(index, records[:1], seen[:1], 3, ("image",))[0]["image"]
    assert all(np.isnan(p.score) for e in alone for p in e.passages)


def test_the_oracle_puts_the_stating_passage_first(root, tmp_path):
    index, records = build(root, tmp_path / "i", longs(8)), longs(8)
    seen = [SimpleNamespace(question="fact?", pseudo_text="", image=page(i)) for i in range(8)]
    for r, f in zip(records, retrieve(index, records, seen, 1, mode="oracle"), strict=True):
        assert all(r.answer in e.passages[0].text and r.image_id != e.image_id for es in f.values() for e in es) and f["text"]


def test_the_cache_remembers_passages(root, tmp_path):
    records = longs(8)
    write_jsonl(tmp_path / "r.jsonl", [r.to_dict() for r in records])
    index = build(root, tmp_path / "i", records)
    grid = Grid(index.fingerprint, sha256_file(tmp_path / "r.jsonl"), 0, 3, ["text", "image"], "pseudo_text", [0., .5], copies=index.copies)
    (tmp_path / "cache").mkdir()
    claim(tmp_path / "cache", grid)
    np.save(tmp_path / "cache/block_000000.npy", fill_block(index, grid, records, root))
    for channels in (("text", "image"), ("image",)):
        store = EvidenceStore(tmp_path / "cache", index, tmp_path / "r.jsonl", 8, 0, 3, channels, "pseudo_text")
        for i, r in enumerate(records):
            seen = corrupt(r, page(i), .5, grid.damage_seed(0), None, "pseudo_text")
            live = retrieve(index, [r], [seen], 3, channels)[0]
            kept = nearest_first(store.finding(i, 1, 0)[1], seen.question)
            for c in channels: assert [(e.row, e.score, [p.at for p in e.passages]) for e in kept[c]] == [(e.row, e.score, [p.at for p in e.passages]) for e in live[c]]
            scores = lambda es: np.array([p.score for e in es for p in e.passages])
            assert np.array_equal(scores(kept["image"]), scores(live["image"]), equal_nan=True)
