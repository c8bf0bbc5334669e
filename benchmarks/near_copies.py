"""Copies and template pages: does the rule tell them apart? Both rates per kind of page, per size and per change, and the time of a comparison.

    python benchmarks/near_copies.py                     all kinds and sizes, a few minutes
    python benchmarks/near_copies.py --rounds 1 --sizes 800x600   a quick look

Pages are drawn here, from seeds: eleven kinds (invoices, forms, letters, screens, chats in dark mode, bars, lines, tables, slides, pages with one line, tall infographics) at the sizes that data sets have. A *template page* keeps
the layout of a page and has other content: everything, one line, one number or one digit. A *copy* is the same page saved otherwise: JPEG, WebP, PNG with a palette, rescaled, cropped or padded at its
margins, gray, brighter, or several of these. Every third page is a JPEG to begin with. Texts of every second page's copies are read "by OCR": some words are missing, some are wrong.
"""
import argparse
import io
import random
import time
from collections import defaultdict

import numpy as np
from bench import report
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from r3nb.copies import Look, verdict
from r3nb.encoders import image_hash

SIZES = {(310, 420): 10, (800, 600): 15, (1080, 1920): 36, (1240, 1754): 21, (2000, 6500): 34}  # size of a page -> height of its letters
WORDS = ("river market signal garden north copper winter station letter engine harbour silver morning paper bridge window figure yellow museum travel summer record carbon island ticket butter "
         "camera planet forest circle number public school doctor energy animal budget family report screen memory people annual global average").split()
FONT = font_manager.findfont("DejaVu Sans")
CHANGES = ("all", "line", "number", "digit")


def face(size): return ImageFont.truetype(FONT, max(6, round(size)))
def some_words(r, n): return " ".join(r.choice(WORDS) for _ in range(n)).title()
def some_number(r): return f"{r.randint(10, 9999):,}" + r.choice(["", "%", " USD", ".50"])


class Sheet:
    "A page under the pencil; it remembers the words."
    def __init__(self, size, back, ink):
        self.im, self.ink, self.words, self.f = Image.new("RGB", size, back), ink, [], SIZES.get(size) or max(9, size[0] // 45)
        self.d, (self.w, self.h) = ImageDraw.Draw(self.im), size

    def say(self, x, y, text, scale=1.0, ink=None):
        self.d.text((x, y), text, font=face(self.f * scale), fill=ink or self.ink)
        self.words += text.split()

    def box(self, *xy, fill=None, line=None): self.d.rectangle([round(v) for v in xy], fill=fill, outline=line, width=max(1, self.f // 12))


def invoice(s, t, v):
    s.say(.08 * s.w, .05 * s.h, t("head", lambda r: some_words(r, 2) + " Ltd"), 1.8)
    s.say(.08 * s.w, .05 * s.h + 3 * s.f, v("Invoice {}", some_number))
    s.say(.6 * s.w, .05 * s.h, v("{}", lambda r: some_words(r, 2)))
    rows = min(14, int((.6 * s.h) / (2 * s.f)))
    for i in range(rows):
        y = .25 * s.h + 2 * i * s.f
        s.say(.08 * s.w, y, v("{}", lambda r: some_words(r, 2)))
        s.say(.72 * s.w, y, v("{}", some_number))
        s.d.line((.06 * s.w, y + 1.6 * s.f, .94 * s.w, y + 1.6 * s.f), fill="#bbb")
    s.say(.5 * s.w, .92 * s.h, v("Total {}", some_number), 1.2)


def form(s, t, v):
    s.say(.05 * s.w, .03 * s.h, t("title", lambda r: "Form " + some_words(r, 3)), 1.5)
    rows = min(24, int(.85 * s.h / (3.2 * s.f)))
    for i in range(rows):
        y = .03 * s.h + (3 + 3.2 * i) * s.f
        s.say(.05 * s.w, y, t(f"label{i}", lambda r: some_words(r, 2)), .8)
        s.box(.5 * s.w, y - .3 * s.f, .95 * s.w, y + 1.7 * s.f, line="#444")
        if i % 3 == 0: s.box(.44 * s.w, y, .44 * s.w + s.f, y + s.f, line="#444")
        if i % 2 == 0: s.say(.52 * s.w, y, v("{}", some_number if i % 4 else lambda r: some_words(r, 1)))


def letter(s, t, v):
    s.say(.1 * s.w, .05 * s.h, t("head", lambda r: some_words(r, 2)), 1.5)
    s.say(.6 * s.w, .1 * s.h, v("Ref {}", some_number))
    per = max(3, int(.8 * s.w / s.f / 4.2))
    for i in range(min(36, int(.7 * s.h / (1.6 * s.f)))):
        if i % 7 != 6: s.say(.1 * s.w, .18 * s.h + 1.6 * i * s.f, v("{}", lambda r: some_words(r, per).lower()) if i % 2 else t(f"l{i}", lambda r: some_words(r, per).lower()))


def app(s, t, v):
    s.box(0, 0, s.w, 3 * s.f, fill=t.colour("bar"))
    s.say(s.f, .8 * s.f, t("title", lambda r: some_words(r, 2)), 1.2, "white")
    for i in range(min(14, int((s.h - 7 * s.f) / (4 * s.f)))):
        y = (4 + 4 * i) * s.f
        s.d.ellipse((s.f, y, 3.4 * s.f, y + 2.4 * s.f), fill=t.colour(f"icon{i % 4}"))
        s.say(4.5 * s.f, y, v("{}", lambda r: some_words(r, 2)))
        s.say(4.5 * s.f, y + 1.4 * s.f, v("{}", some_number), .8, "#777")
        s.d.line((0, y + 3.3 * s.f, s.w, y + 3.3 * s.f), fill="#ddd")
    s.box(0, s.h - 3 * s.f, s.w, s.h, fill="#eee" if s.ink == "black" else "#222")


def chat(s, t, v):
    s.box(0, 0, s.w, 3 * s.f, fill="#1f2c34")
    s.say(s.f, .8 * s.f, t("title", lambda r: some_words(r, 1)), 1.2)
    for i in range(min(16, int((s.h - 6 * s.f) / (3.4 * s.f)))):
        y, x = (4 + 3.4 * i) * s.f, s.f if i % 2 else .3 * s.w
        s.box(x, y, x + .62 * s.w, y + 2.6 * s.f, fill="#005c4b" if i % 2 == 0 else "#202c33")
        s.say(x + .6 * s.f, y + .6 * s.f, v("{}", lambda r: some_words(r, 2).lower() + " " + some_number(r)))


def axes(s, t):
    s.say(.15 * s.w, .04 * s.h, t("title", lambda r: some_words(r, 3)), 1.3)
    s.d.line((.12 * s.w, .15 * s.h, .12 * s.w, .85 * s.h, .95 * s.w, .85 * s.h), fill=s.ink, width=max(1, s.f // 10))
    for i in range(5):
        y = (.85 - .14 * i) * s.h
        s.say(.03 * s.w, y - s.f / 2, str(25 * i), .9)
        s.d.line((.12 * s.w, y, .95 * s.w, y), fill="#ddd")


def bars(s, t, v):
    axes(s, t)
    n = t.pick("n", (4, 5, 6))
    for i in range(n):
        x, value = (.16 + .78 * i / n) * s.w, v("{}", lambda r: str(r.randint(3, 99)))
        s.box(x, (.85 - .0056 * int(value)) * s.h, x + .5 * .78 / n * s.w, .85 * s.h, fill=t.colour(f"c{i % 3}"))
        s.say(x, (.85 - .0056 * int(value)) * s.h - 1.3 * s.f, value)
        s.say(x, .87 * s.h, t(f"x{i}", lambda r: some_words(r, 1)), .9)


def lines(s, t, v):
    axes(s, t)
    for k in range(2):
        values = [int(v("{}", lambda r: str(r.randint(3, 99)))) for _ in range(7)]
        points = [((.16 + .12 * i) * s.w, (.85 - .0056 * y) * s.h) for i, y in enumerate(values)]
        s.d.line(points, fill=t.colour(f"k{k}"), width=max(2, s.f // 6))
        for x, y in points: s.d.ellipse((x - s.f / 4, y - s.f / 4, x + s.f / 4, y + s.f / 4), fill=t.colour(f"k{k}"))
    for i in range(7): s.say((.15 + .12 * i) * s.w, .87 * s.h, str(2010 + i), .9)


def table(s, t, v):
    s.say(.05 * s.w, .03 * s.h, t("title", lambda r: some_words(r, 3)), 1.3)
    rows = min(30, int(.85 * s.h / (2 * s.f)))
    for i in range(rows):
        y = .03 * s.h + (2.5 + 2 * i) * s.f
        if i % 2: s.box(.04 * s.w, y - .3 * s.f, .96 * s.w, y + 1.6 * s.f, fill="#eef2fa" if s.ink == "black" else "#16212b")
        s.say(.05 * s.w, y, t(f"r{i}", lambda r: some_words(r, 1)))
        for c in range(3): s.say((.36 + .21 * c) * s.w, y, v("{}", lambda r: f"{r.randint(10, 99999):,}"))


def slide(s, t, v):
    s.box(0, 0, s.w, .14 * s.h, fill=t.colour("head"))
    s.say(.05 * s.w, .04 * s.h, t("title", lambda r: some_words(r, 2)), 1.8, "white")
    for i in range(4): s.say(.08 * s.w, (.24 + .13 * i) * s.h, v("- {}", lambda r: some_words(r, 2) + " " + some_number(r)), 1.3)
    s.box(.62 * s.w, .7 * s.h, .95 * s.w, .95 * s.h, fill=t.colour("pic"))


def sparse(s, t, v):
    s.say(.1 * s.w, .1 * s.h, t("title", lambda r: some_words(r, 2)), 1.3)
    s.say(.1 * s.w, .5 * s.h, v("{}", lambda r: f"{r.randint(10, 9999)}"), 1.5)


def infographic(s, t, v):
    s.say(.05 * s.w, .01 * s.h, t("title", lambda r: some_words(r, 2)), 2)
    step = 9 * s.f
    for i in range(int((s.h - 8 * s.f) / step)):
        y = 5 * s.f + i * step
        s.box(.03 * s.w, y, .97 * s.w, y + 8 * s.f, fill=t.colour(f"p{i % 5}", pale=True))
        s.d.pieslice((.06 * s.w, y + s.f, .06 * s.w + 6 * s.f, y + 7 * s.f), 0, t.pick(f"a{i}", range(60, 300)), fill=t.colour(f"q{i % 5}"))
        s.say(.06 * s.w + 8 * s.f, y + s.f, v("{}", some_number), 1.6)
        s.say(.06 * s.w + 8 * s.f, y + 4 * s.f, t(f"h{i}", lambda r: some_words(r, 2)), .9)
        s.say(.06 * s.w + 8 * s.f, y + 5.8 * s.f, v("{}", lambda r: some_words(r, 2).lower()), .9)


KINDS = {f.__name__: f for f in (invoice, form, letter, app, chat, bars, lines, table, slide, sparse, infographic)}


class Template:
    "What all pages of a template share."
    def __init__(self, kind, seed): self.key = f"{kind}/{seed}"
    def of(self, name): return random.Random(f"{self.key}/{name}")
    def __call__(self, name, make): return make(self.of(name))
    def pick(self, name, values): return self.of(name).choice(values)
    def colour(self, name, pale=False): return tuple(self.of(name).randint(*(210, 245) if pale else (30, 190)) for _ in range(3))


class Content:
    "The values of one page; with a change, one of them is another."
    def __init__(self, seed, change=None, place=None): self.seed, self.change, self.place, self.made = seed, change, place, []

    def __call__(self, pattern, make):
        r = random.Random(f"{self.seed}/{len(self.made)}")
        value = make(r)
        if len(self.made) == self.place: value = self.other(value, make, r)
        self.made.append(value)
        return pattern.format(value)

    def other(self, value, make, r):
        if self.change == "digit":
            at = r.choice([i for i, c in enumerate(value) if c.isdigit()])
            return value[:at] + r.choice([d for d in "0123456789" if d != value[at] and (d != "0" or at)]) + value[at + 1:]
        new = make(r)
        while new == value: new = make(r)
        return new


def draw(kind, size, template, content, change=None, place=None):
    "A page, its words and its values."
    dark = kind == "chat" or (kind in ("app", "table") and Template(kind, template).pick("dark", (False, False, True)))
    s, values = Sheet(size, "#0b141a" if dark else Template(kind, template).pick("back", ("white", "white", "#fff8e8", "#f4f4ff")), "#e9edef" if dark else "black"), Content(content, change, place)
    KINDS[kind](s, Template(kind, template), values)
    return s.im, s.words, values.made


def changed(kind, size, template, content, change):
    "A template page of another: all content other, or one line, one number, one digit."
    if change == "all": return draw(kind, size, template, content + 100000)[:2]
    _, _, made = draw(kind, size, template, content)
    numeric = [i for i, v in enumerate(made) if any(c.isdigit() for c in v)]
    places = numeric if change != "line" else [i for i in range(len(made)) if i not in numeric] or numeric
    return draw(kind, size, template, content, change, random.Random(f"{kind}{template}{content}{change}").choice(places))[:2]


def through(im, kind, **options):
    b = io.BytesIO()
    im.save(b, kind, **options)
    return Image.open(io.BytesIO(b.getvalue())).convert("RGB")


def scaled(im, factor): return im.resize([max(8, round(v * factor)) for v in im.size], Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.LANCZOS)


def cropped(im, r, most):
    left, top, right, bottom = (r.uniform(0, most) for _ in range(4))
    return im.crop((round(left * im.width), round(top * im.height), round((1 - right) * im.width), round((1 - bottom) * im.height)))


def padded(im, r, most):
    left, top, right, bottom = (r.uniform(0, most) for _ in range(4))
    out = Image.new("RGB", (round((1 + left + right) * im.width), round((1 + top + bottom) * im.height)), im.getpixel((0, 0)) if r.random() < .5 else r.choice(["white", "black", "#ddd"]))
    out.paste(im, (round(left * im.width), round(top * im.height)))
    return out


def gamma(im, g): return im.point([round(255 * (i / 255) ** g) for i in range(256)] * 3)


COPIES = {
    "jpeg 95": lambda im, r: through(im, "JPEG", quality=95), "jpeg 75": lambda im, r: through(im, "JPEG", quality=75), "jpeg 50": lambda im, r: through(im, "JPEG", quality=50),
    "jpeg 30": lambda im, r: through(im, "JPEG", quality=30), "webp 60": lambda im, r: through(im, "WEBP", quality=60), "palette": lambda im, r: im.quantize(r.choice([16, 32, 64])).convert("RGB"),
    "scale 0.4": lambda im, r: scaled(im, .4), "scale 0.5-0.9": lambda im, r: scaled(im, r.uniform(.5, .9)), "scale 1.1-2": lambda im, r: scaled(im, r.uniform(1.1, 2)),
    "crop 1%": lambda im, r: cropped(im, r, .01), "crop 3%": lambda im, r: cropped(im, r, .03), "crop 5%": lambda im, r: cropped(im, r, .05), "pad 5%": lambda im, r: padded(im, r, .05),
    "gray": lambda im, r: im.convert("L").convert("RGB"), "bright": lambda im, r: ImageEnhance.Brightness(im).enhance(r.uniform(.85, 1.15)), "gamma": lambda im, r: gamma(im, r.uniform(.8, 1.25)),
    "scale + jpeg 60": lambda im, r: through(scaled(im, r.uniform(.45, 1.5)), "JPEG", quality=60), "crop 3% + jpeg 60": lambda im, r: through(cropped(im, r, .03), "JPEG", quality=60),
    "crop 3% + scale + jpeg 50": lambda im, r: through(scaled(cropped(im, r, .03), r.uniform(.5, 1.3)), "JPEG", quality=50),
    "crop 5% + scale + webp": lambda im, r: through(scaled(cropped(im, r, .05), r.uniform(.5, 1.3)), "WEBP", quality=50),
    "pad 4% + gray + jpeg 70": lambda im, r: through(padded(im, r, .04).convert("L"), "JPEG", quality=70),
}


def misread(words, r, missing=.1, wrong=.06):
    "Words as OCR of another file of the same page might have them."
    swap, out = str.maketrans("0O1lI5S8B", "OOlIl5B3S"[:9]), []
    for w in words:
        if r.random() < missing: continue
        if r.random() < wrong:
            at = r.randrange(len(w))
            w = w.translate(swap) if r.random() < .5 else w[:at] + r.choice("abcdefgh0123456789") + w[at + 1:]
        out.append(w)
    return " ".join(out)


def look(im, text): return Look(image_hash(im), image=im, text=text)


def pairs_of(kind, size, seed, stored):
    "Pairs of looks of one page: kind of pair, change, and whether it is a copy."
    im, words, _ = draw(kind, size, seed, seed)
    keep = (lambda p: through(p, "JPEG", quality=stored)) if stored else (lambda p: p)
    text, page = " ".join(words), look(keep(im), " ".join(words))
    for change in CHANGES:
        other, said = changed(kind, size, seed, seed, change)
        yield "template", change, page, look(keep(other), " ".join(said))
    for name, save in COPIES.items():
        r = random.Random(f"{kind}{size}{seed}{name}")
        yield "copy", name, page, look(save(keep(im), r), misread(words, r) if seed % 2 else text)


def without_text(a): return Look(a.hash, image=a.image)


def measure(sizes, kinds, rounds, texts):
    "Verdicts of all pairs, and the seconds of a comparison."
    rows = []
    for size in sizes:
        for kind in kinds:
            for seed in range(rounds):
                for sort, change, a, b in pairs_of(kind, size, seed, 80 if seed % 3 == 2 else 0):
                    if not texts: a, b = without_text(a), without_text(b)
                    start = time.process_time()
                    v = verdict(a, b)
                    rows.append(dict(sort=sort, change=change, kind=kind, size="x".join(map(str, size)), right=v.copy == (sort == "copy"), change_=v.change, reason=v.reason, seconds=time.process_time() - start))
    return rows


def rates(rows, by):
    "Share of right verdicts by a column."
    groups = defaultdict(list)
    for r in rows: groups[r[by]].append(r["right"])
    return {k: (sum(v), len(v)) for k, v in groups.items()}


def main():
    "Measure with and without texts, and report."
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=3, help="pages of each kind and size")
    ap.add_argument("--sizes", default="", help="for example 310x420,800x600; empty takes all")
    ap.add_argument("--kinds", default="", help="for example invoice,app; empty takes all")
    ap.add_argument("--no_texts", action="store_true", help="images only")
    args = ap.parse_args()
    sizes = [tuple(map(int, s.split("x"))) for s in args.sizes.split(",")] if args.sizes else list(SIZES)
    rows = measure(sizes, args.kinds.split(",") if args.kinds else list(KINDS), args.rounds, not args.no_texts)
    texts = "images only" if args.no_texts else "images and texts"
    for sort, name, goal in (("copy", "copies found", "at least 99%"), ("template", "template pages kept", "at least 99%")):
        part = [r for r in rows if r["sort"] == sort]
        report(f"{name}, {texts}", 100 * np.mean([r["right"] for r in part]), "%", goal, pairs=len(part))
        for by in ("change", "kind", "size"): print(f"    {by}: " + ", ".join(f"{k} {a}/{n}" for k, (a, n) in rates(part, by).items()), flush=True)
        for r in part:
            if not r["right"]: print(f"    wrong: {r['kind']} {r['size']} {r['change']}: {r['change_']}, {r['reason']}")
        seconds = [r["seconds"] for r in part]
        report(f"a verdict on a {sort}, files open", 1e3 * np.mean(seconds), "ms", p95=round(1e3 * float(np.percentile(seconds, 95)), 1))


if __name__ == "__main__": main()
