"""Texts are cut into passages that fit, lose nothing, and end where lines end."""
import re

import pytest

from r3nb.core import rng
from r3nb.passages import count_tokens, fit, nearness, split

SQUEEZE = lambda t: re.sub(r"\s+", "", t)
WORDS = [f"{a}{b}{c}" for a in ("ba", "ke", "lo", "mi") for b in ("ra", "tu", "ne") for c in ("", "st", "ling", "nes")]


def words(g, n): return " ".join(g.choice(WORDS, n))


TEXTS = {
    "lines": lambda g, n: "\n".join(words(g, int(k)) for k in g.integers(1, 12, n // 6)),
    "one line": words,
    "sentences": lambda g, n: " ".join(words(g, 9).capitalize() + "." for _ in range(n // 9)),
    "numbers": lambda g, n: "\n".join(" ".join(f"{v:,}%" for v in g.integers(0, 99999, 4)) for _ in range(n // 4)),
    "Chinese": lambda g, n: "".join(map(chr, g.integers(0x4e00, 0x9f00, n))),
    "one word": lambda g, n: "x" * (5 * n),
    "symbols": lambda g, n: "=-" * n,
    "spaces": lambda g, n: " \n " * n + words(g, n) + "\n\n\n" * n,
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("n", [30, 150, 1100])
def test_whole_and_bounded(kind, n):
    for seed in range(3):
        text = TEXTS[kind](rng("passages", seed, kind), n)
        spans, total = split(text), count_tokens(text)
        if total <= 130:
            assert spans == [(0, len(text))]
            continue
        parts = [text[a:b] for a, b in spans]
        assert SQUEEZE("".join(parts)) == SQUEEZE(text) and all(p.strip() == p and p for p in parts)
        sizes = [count_tokens(p) for p in parts]
        assert max(sizes) <= 131 and min(sizes) >= 40 and len(parts) >= 2 # a cut inside a word adds up to one token
        assert 70 <= total / len(parts) <= 130 or len(parts) == 2
        assert spans == split(text)


def test_cuts_at_lines():
    for seed in range(5):
        text = TEXTS["lines"](rng("passages", seed), 600)
        for a, b in split(text): assert (a == 0 or text[a - 1] == "\n") and (b == len(text) or text[b] == "\n")


def test_cuts_at_sentences():
    text = TEXTS["sentences"](rng("passages", 0), 600)
    assert all(text[b - 1] == "." for _, b in split(text))


@pytest.mark.parametrize("size", [10, 40, 100])
def test_other_sizes(size):
    text = TEXTS["lines"](rng("passages", 1), 400)
    sizes = [count_tokens(text[a:b]) for a, b in split(text, size)]
    assert max(sizes) <= 1.3 * size + 1 and sum(sizes) / len(sizes) > .6 * size


@pytest.mark.parametrize("kind", TEXTS)
def test_fit(kind):
    text = TEXTS[kind](rng("fit", kind), 700)
    measure = lambda t: len(t) // 2 + 2 # another tokeniser, with two marks of its own
    spans = fit(text, split(text), 50, measure)
    assert all(measure(text[a:b]) <= 50 for a, b in spans)
    assert SQUEEZE("".join(text[a:b] for a, b in spans)) == SQUEEZE(text)


def test_empty():
    assert split("") == [(0, 0)] and split(" \n ") == [(0, 3)]


def test_nearness_finds_the_passage():
    g, hits = rng("near"), {0: 0, .3: 0}
    for _trial in range(40):
        parts = [words(g, 80) for _ in range(12)]
        at, fact = int(g.integers(12)), f"The {words(g, 1)} harbour of Vinterholm earned {int(g.integers(999))} crowns"
        parts[at] = parts[at][:200] + f"\n{fact}\n" + parts[at][200:]
        for level in hits:
            asked = "How many crowns did the harbour of Vinterholm earn?"
            for _ in range(int(level * 10)):
                k = int(g.integers(len(asked) - 1))
                asked = asked[:k] + asked[k + 1] + asked[k] + asked[k + 2:] # letters change places
            scores = nearness(asked, parts)
            assert len(scores) == 12 and all(0 <= s <= 1 for s in scores)
            hits[level] += scores[at] == max(scores) and scores.count(max(scores)) == 1
    assert hits[0] == 40 and hits[.3] >= 38, hits


def test_nearness_in_chinese_and_numbers():
    assert nearness("京都的人口是多少", ["东京的面积", "京都人口一百四十万", "大阪"])[1] == max(nearness("京都的人口是多少", ["东京的面积", "京都人口一百四十万", "大阪"]))
    a, b = nearness("What was sold in 2019?", ["sold 12 in 2018", "sold 12 in 2019"])
    assert b > a
