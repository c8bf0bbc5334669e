"""Outputs of executed notebooks: cleaned of what belongs to one machine, small, saved in the notebooks, compared with what the code gives today."""
import base64
import io
import json
import re
import tempfile
from pathlib import Path

from PIL import Image, ImageChops, ImageStat

ROOT = Path(__file__).resolve().parents[1]
PICTURE = 45_000 # bytes of a picture, at most; a page of damaged pictures then stays below 400 kB
PLAIN = 10_000 # bytes of a picture that is kept as it is
PIXELS = 3.0 # mean difference of two pictures that count as equal, of 255
NEAR = 1e-3 # relative difference of two numbers that count as equal; or one in the last decimal that is shown
NOISE = 1e-5 # numbers that are written with an exponent and are below this size are rounding errors: any two of them count as equal
NUMBER = re.compile(r"(?<![\w.])([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?![\w])")
DIGEST = re.compile(r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{8,64}\b")
EMBEDDED = re.compile(r"data:image/(png|webp|jpeg);base64,([A-Za-z0-9+/=]+)") # a picture in HTML
SHOWN = ("image/png", "image/svg+xml", "text/html", "text/markdown", "text/latex", "text/plain") # the first that there is counts


MACHINE = ( # what a run says about this machine and this hour, and what is kept instead
    (r"^\[\d{4}-\d\d-\d\d [\d:,]+\] \[[A-Z]+\].*\n?", ""), # a library's log
    (r"[^\n]*\r(?!\n)", ""), # a line that was written over
    (r"\b(in|after|took|takes) \d[\d.,]* (ms|s|min)\b", r"\1 … \2"),
    (r"\b\d[\d.,]* (images|samples|tokens|pages|it)(/s|_per_second)\b", r"… \1\2"),
    (r"'(samples_per_second|tokens_per_second|memory_gb)': [\d.]+", r"'\1': …"),
    (r"\b(done in|took) \d+:\d\d(:\d\d)?\b", r"\1 …"), # what a study says of a stage
    (r"\b\d+:\d\d(:\d\d)? so far\b", "… so far"),
    (r" \d+:\d\d(:\d\d)?(?= +\d[\d.]* [kMG]?B\b)", lambda m: "…".rjust(len(m[0]))), # in its table, before a size
    (r"\b\d[\d,]* MB are free", "… MB are free"))


def joined(value):
    "Text that nbformat keeps as lines."
    return "".join(value) if isinstance(value, list) else value


def plain(text):
    "Text without the folders, the addresses, the times and the terminal codes of the machine that made it."
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    text = re.sub(rf"{re.escape(tempfile.gettempdir())}/tmp\w+", "demo", text)
    for what, instead in MACHINE: text = re.sub(what, instead, text, flags=re.M)
    return re.sub(r" at 0x[0-9a-f]{6,}", "", text)


def packed(image, kind, scale):
    "A picture with fewer pixels, as bytes: in 256 colours, or at the quality of a preview."
    out, size = io.BytesIO(), [max(1, round(s*scale)) for s in image.size]
    part, dpi = image.convert("RGB"), image.info.get("dpi")
    if scale < 1: part = part.resize(size, Image.Resampling.LANCZOS)
    if kind == "png":
        part = part.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        part.save(out, "PNG", optimize=True, **({"dpi": tuple(d*scale for d in dpi)} if dpi else {}))
    else: part.save(out, kind.upper(), quality=70)
    return out.getvalue()


def small(picture, kind="png"):
    "A picture, base64, of at most PICTURE bytes: packed where that makes it smaller, and then with fewer pixels."
    raw = best = base64.b64decode(picture)
    image, scale = Image.open(io.BytesIO(raw)), 1.0
    if len(raw) > (PLAIN if kind == "png" else PICTURE): best = min(raw, packed(image, kind, 1), key=len)
    while len(best) > PICTURE: best = packed(image, kind, scale := scale*.85)
    return base64.b64encode(best).decode()


def small_html(html):
    "HTML whose pictures are small."
    return EMBEDDED.sub(lambda m: f"data:image/{m[1]};base64,{small(m[2], m[1])}", html)


def output(o):
    "One output without what a page cannot show: progress bars, live widgets, the layout of this machine; None if nothing is left."
    kind = o["output_type"]
    if kind == "stream":
        text = plain(joined(o["text"]))
        return None if o["name"] == "stderr" or not text.strip() else {"name": o["name"], "output_type": "stream", "text": text}
    if kind not in ("display_data", "execute_result") or "widget" in " ".join(o["data"]): return None
    best = next((k for k in SHOWN if k in o["data"]), None)
    if not best: return None
    value = joined(o["data"][best])
    data = {best: small(value) if best == "image/png" else plain(small_html(value))}
    return {"data": data, "metadata": {}, "output_type": "display_data"}


def outputs(found):
    "The outputs of one cell, texts that follow each other as one."
    out = []
    for o in filter(None, map(output, found)):
        if o["output_type"] == "stream" and out and out[-1].get("name") == o["name"]: out[-1]["text"] += o["text"]
        else: out.append(o)
    return out


# In notebooks ------------------------------------------------------------------------------------------------------------------------

def lines(value): return value.splitlines(keepends=True)


def as_saved(o):
    "An output as nbformat keeps it: text by lines."
    if o["output_type"] == "stream": return o | {"text": lines(o["text"])}
    return o | {"data": {k: v if k == "image/png" else lines(v) for k, v in o["data"].items()}}


def as_shown(o):
    "An output as `output` makes it, from a notebook."
    if o["output_type"] == "stream": return o | {"text": joined(o["text"])}
    return o | {"data": {k: joined(v) for k, v in o["data"].items()}}


def without_outputs(text):
    "The source of a notebook, whatever was saved with it."
    return [{k: c[k] for k in ("cell_type", "id", "metadata", "source") if k in c} for c in json.loads(text)["cells"]]


def code_cells(book, found):
    "Each code cell of a notebook, with what its run has shown."
    for cell in book["cells"]:
        if cell["cell_type"] == "code": yield cell, found.get(cell["id"], [])


def save(path, found):
    "Write outputs, by the id of their cell, into a notebook; returns whether anything has changed."
    text = path.read_text(encoding="utf-8")
    book = json.loads(text)
    for cell, shown in code_cells(book, found): cell["outputs"] = [as_saved(o) for o in shown]
    new = json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if new != text: path.write_text(new, encoding="utf-8")
    return new != text


def check(path, found):
    "What differs between the outputs in a notebook and those of a run, a line for each cell."
    book = json.loads(path.read_text(encoding="utf-8"))
    for cell, shown in code_cells(book, found):
        why = different([as_shown(o) for o in cell["outputs"]], shown)
        if why: yield f"{path.name}, cell {cell['id']}: {why}"


# Comparison --------------------------------------------------------------------------------------------------------------------------

def different(saved, today):
    "Why two lists of outputs are not the same, or nothing."
    kinds = lambda outs: [o.get("name") or next(iter(o["data"])) for o in outs]
    if kinds(saved) != kinds(today): return f"it shows {kinds(today) or 'nothing'}, saved is {kinds(saved) or 'nothing'}"
    for a, b in zip(saved, today, strict=True):
        if "text" in a: why = other_text(a["text"], b["text"])
        else:
            kind, old = next(iter(a["data"].items()))
            why = (other_picture if kind == "image/png" else other_page)(old, b["data"][kind])
        if why: return why


def other_page(old, new):
    "Where two texts with pictures in them differ, or nothing."
    pictures = zip(EMBEDDED.findall(old), EMBEDDED.findall(new), strict=False)
    why = other_text(EMBEDDED.sub("<picture>", old), EMBEDDED.sub("<picture>", new))
    return why or next(filter(None, (other_picture(a, b) for (_, a), (_, b) in pictures)), None)


def other_text(old, new):
    "Where two texts differ by more than the last digits of their numbers, or a digest that follows from them."
    a, b = (NUMBER.split(DIGEST.sub("<digest>", t)) for t in (old, new))
    same = len(a) == len(b) and all(near(x, y) if i % 2 else x.split() == y.split() for i, (x, y) in enumerate(zip(a, b, strict=True)))
    if same: return None
    first = next((i for i, (x, y) in enumerate(zip(old, new, strict=False)) if x != y), min(len(old), len(new)))
    return f"it shows {new[max(0, first - 30):first + 50]!r}, saved is {old[max(0, first - 30):first + 50]!r}"


def near(x, y):
    "Are two numbers equal but for their last digits? Whole numbers have to be equal."
    if x == y: return True
    if not any(c in x + y for c in ".e"): return False
    if "e" in x and "e" in y and max(abs(float(x)), abs(float(y))) < NOISE: return True
    decimals = len(x.split("e")[0].partition(".")[2])
    unit = 0 if "e" in x + y else 1.01*10.0**-decimals
    return abs(float(x) - float(y)) <= max(NEAR*abs(float(x)), unit)


def other_picture(old, new):
    "Why two pictures are not alike, or nothing."
    a, b = (Image.open(io.BytesIO(base64.b64decode(p))).convert("RGB") for p in (old, new))
    if a.size != b.size: return f"a picture of {b.size[0]} x {b.size[1]} pixels, saved is one of {a.size[0]} x {a.size[1]}"
    mean = max(ImageStat.Stat(ImageChops.difference(a, b)).mean)
    if mean > PIXELS: return f"a picture that differs by {mean:.1f} of 255 on average from the saved one, {PIXELS:g} is allowed"
