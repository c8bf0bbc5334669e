"""Evidence index: self-exclusion, preparation, controls, faults. A random tiny CLIP and the real MiniLM."""
import io
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tiny import clip

from r3nb.copies import Look, verdict
from r3nb.core import ConfigError, DataError, ImageError, IndexMismatchError, QARecord, write_jsonl
from r3nb.indices import (
    CHANNELS,
    MODES,
    EvidenceCache,
    EvidenceIndex,
    ImageEncoder,
    TextEncoder,
    documents,
    donors,
    image_hash,
    leakage_audit,
    main,
    pad_square,
    query_text,
    retrieve,
    top_rows,
)

WORDS = "alpha bravo delta echo golf hotel india juliet kilo lima mike november oscar papa quebec romeo sierra tango".split()
N = 14


def page(i):
    "A page of its own size and pattern; odd pages are tall, even ones wide."
    g = np.random.default_rng(i)
    size = (120, 260) if i % 2 else (240, 130)
    im = Image.new("RGB", size, tuple(int(x) for x in g.integers(120, 256, 3)))
    d = ImageDraw.Draw(im)
    for _ in range(9):
        x, y = int(g.integers(0, size[0])), int(g.integers(0, size[1]))
        d.rectangle((x, y, x + int(g.integers(10, 60)), y + int(g.integers(10, 60))), fill=tuple(int(v) for v in g.integers(0, 256, 3)))
    return im


def record(i, n=0, **kw):
    text = " ".join(np.random.default_rng(100 + i).choice(WORDS, 8)) + f" page {i}"
    base = dict(sample_id=f"w_train_{i:02d}_{n}", dataset="w", split="train", image_id=f"w/{i:02d}", image_path=f"w/images/{i}.png",
                question=f"zzquestion {n}?", answer="zzanswer", answers=["zzanswer"], pseudo_text=text, meta={"entity": f"e{i // 2}"})
    return QARecord(**(base | kw))


def damaged(r, image, text=None):
    return SimpleNamespace(question=r.question, pseudo_text=r.pseudo_text[:20] if text is None else text, image=image)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("indices")
    (root / "w/images").mkdir(parents=True)
    for i in range(N): page(i).save(root / f"w/images/{i}.png")
    records = [record(i, n) for i in range(N) for n in range(2)]
    text, image = TextEncoder(), ImageEncoder(clip(root / "clip", 0))
    index = EvidenceIndex.build(records, root, root / "index", text, image, batch_size=4)
    pairs = [damaged(r, page(int(r.image_id[2:]))) for r in records]
    return SimpleNamespace(root=root, records=records, text=text, image=image, index=index, pairs=pairs, stated=stated(records))


def stated(records):
    "The same questions with an answer that stands on the sibling page, where the oracle finds it"
    return [replace(r, answers=[f"page {int(r.image_id[2:]) ^ 1}"]) for r in records]


def rows(found): return [[[e.row for e in f[c]] for c in CHANNELS] for f in found]


# ---- documents and building

def test_one_document_per_image_and_no_question_or_answer_anywhere(world):
    assert len(world.index) == N
    blob = b"".join(p.read_bytes() for p in (world.root / "index").iterdir())
    assert b"zzanswer" not in blob and b"zzquestion" not in blob and world.records[0].pseudo_text.encode() in blob


def test_build_is_reproducible_and_independent_of_questions(world):
    once = [r for r in world.records if r.sample_id.endswith("_1")]
    again = EvidenceIndex.build(once, world.root, world.root / "again", world.text, world.image, batch_size=4)
    assert again.fingerprint == world.index.fingerprint
    assert np.array_equal(again.text_vectors, world.index.text_vectors) and np.array_equal(again.image_vectors, world.index.image_vectors)


def test_vectors_do_not_depend_on_batch_size_beyond_rounding(world):
    other = EvidenceIndex.build(world.records, world.root, world.root / "b7", world.text, world.image, batch_size=7)
    assert np.abs(other.text_vectors - world.index.text_vectors).max() < 1e-5
    assert rows(retrieve(other, world.records, world.pairs)) == rows(retrieve(world.index, world.records, world.pairs))


def test_constant_or_empty_texts_are_refused(world):
    for text, said in (("", "empty pseudo_text"), ("  \n", "empty pseudo_text"), ("menu", "same pseudo_text")):
        with pytest.raises(DataError, match=said):
            EvidenceIndex.build([record(i, pseudo_text=text) for i in range(3)], world.root, world.root / "const", world.text, world.image)
    assert not (world.root / "const").exists()


def test_a_constant_text_encoder_is_refused(world):
    dull = SimpleNamespace(name="dull", fingerprint="x", encode=lambda t: np.tile(np.float32([[1, 0]]), (len(t), 1)))
    with pytest.raises(DataError, match="vectors are equal"):
        EvidenceIndex.build(world.records, world.root, world.root / "dull", dull, world.image)
    assert not (world.root / "dull").exists() and not list(world.root.glob(".tmp-*"))


def test_blank_documents_are_not_text_evidence(world):
    recs = [record(i, pseudo_text="" if i % 2 else f"{WORDS[i]} {i}") for i in range(6)]
    index = EvidenceIndex.build(recs, world.root, world.root / "blank", world.text, world.image)
    found = index.search(texts=["", "alpha"], images=[page(1), page(1)], top_k=6)
    assert all(e.text for f in found for e in f["text"]) and [len(f["text"]) for f in found] == [3, 3]
    assert found[0]["image"][0].row == 1


def test_hints_and_contradictions_are_refused():
    with pytest.raises(DataError, match="leak answers"): documents([record(0, pseudo_text="a [ANSWER_HINT] b")])
    with pytest.raises(DataError, match="pseudo_text"): documents([record(0), record(0, 1, pseudo_text="else")])
    with pytest.raises(DataError, match="image_path"): documents([record(0), record(0, 1, image_path="w/images/1.png")])
    with pytest.raises(DataError, match="nothing to index"): documents([])


def test_missing_truncated_and_climbing_images(world):
    cut = world.root / "w/images/cut.png"
    cut.write_bytes((world.root / "w/images/0.png").read_bytes()[:-200])
    for path, error, said in (("w/images/none.png", ImageError, "none.png"), ("w/images/cut.png", ImageError, "cut.png"),
                              ("../w/images/0.png", DataError, r"\.\.")):
        with pytest.raises(error, match=said):
            EvidenceIndex.build([record(0), record(1, image_path=path)], world.root, world.root / "bad", world.text, world.image)
    assert not (world.root / "bad").exists()


def test_a_failed_build_keeps_the_old_index_and_foreign_folders_are_safe(world):
    out = world.root / "kept"
    EvidenceIndex.build(world.records[:8], world.root, out, world.text, world.image)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    broken = SimpleNamespace(name="x", fingerprint="x", encode=lambda images: 1 / 0)
    with pytest.raises(ConfigError, match="documents was .*--overwrite"): EvidenceIndex.build(world.records, world.root, out, world.text, world.image)
    with pytest.raises(ConfigError, match="batch_size was 32, is 7"): EvidenceIndex.build(world.records[:8], world.root, out, world.text, world.image, 7)
    with pytest.raises(ZeroDivisionError): EvidenceIndex.build(world.records, world.root, out, world.text, broken, overwrite=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    dead = SimpleNamespace(name="dead", fingerprint=world.image.fingerprint, encode=lambda images: 1 / 0)
    assert len(EvidenceIndex.build(world.records[:8], world.root, out, world.text, dead)) == 4  # the same options: it is there
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    precious = world.root / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="thesis.tex"): EvidenceIndex.build(world.records, world.root, precious, world.text, world.image)
    assert (precious / "thesis.tex").exists()


# ---- encoders

def test_another_encoder_is_refused_even_of_equal_width(world):
    other = clip(world.root / "clip2", 1)
    assert EvidenceIndex.load(world.root / "index", "minilm", world.root / "clip").fingerprint == world.index.fingerprint
    with pytest.raises(IndexMismatchError, match="image vectors.*r3nb_index"): EvidenceIndex.load(world.root / "index", image_encoder=other)
    with pytest.raises(IndexMismatchError, match="width"): world.index.search(texts=np.zeros((1, 5), "float32"))


def test_encoder_faults_are_named(world, tmp_path):
    with pytest.raises(ConfigError, match="not a model directory"): ImageEncoder(tmp_path / "none")
    with pytest.raises(ConfigError, match="expected 'clip'"): ImageEncoder("minilm")
    folder = clip(tmp_path / "bin", 0)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="save_pretrained"): ImageEncoder(folder)
    from safetensors.torch import load_file, save_file
    folder = clip(tmp_path / "partial", 0)
    state = load_file(folder / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="visual_projection"): ImageEncoder(folder).encode([page(0)])


def test_a_copied_tree_still_loads(world, tmp_path):
    import shutil
    shutil.copytree(world.root / "clip", tmp_path / "clip")
    shutil.copytree(world.root / "index", tmp_path / "index")
    shutil.copytree(world.root / "w", tmp_path / "w")
    moved = EvidenceIndex.load(tmp_path / "index")
    assert moved.encoders["image"].folder == tmp_path / "clip" and moved.image_root == tmp_path
    assert str(world.root) not in (tmp_path / "index/index.json").read_text()


def test_files_that_disagree_are_refused(world, tmp_path):
    import shutil
    shutil.copytree(world.root / "index", tmp_path / "index")
    np.save(tmp_path / "index/text_vectors.npy", world.index.text_vectors[:3])
    with pytest.raises(IndexMismatchError, match="disagree"): EvidenceIndex.load(tmp_path / "index", world.text, world.image)
    with pytest.raises(ConfigError, match="not an index"): EvidenceIndex.load(tmp_path, world.text, world.image)


# ---- preparation of images

def test_clean_images_find_themselves_always(world):
    hits = world.index.search(images=[page(i) for i in range(N)], top_k=1)
    assert [h["image"][0].row for h in hits] == list(range(N))
    assert all(h["image"][0].score > .9999 for h in hits)


def test_padding_keeps_the_whole_page_and_its_shape():
    im = Image.new("RGB", (100, 400), "white")
    ImageDraw.Draw(im).rectangle((0, 0, 100, 20), fill="red")
    ImageDraw.Draw(im).rectangle((0, 380, 100, 400), fill="blue")
    got = np.asarray(pad_square(im, 64))
    assert got.shape == (64, 64, 3)
    assert got[1, 32].tolist() == [255, 0, 0] and got[62, 32].tolist() == [0, 0, 255]
    inked = (got != got[0, 0]).any(-1).any(0)
    assert inked.sum() == 16
    for size in ((1, 1), (20000, 3), (3, 5000)): assert pad_square(Image.new("RGB", size), 64).size == (64, 64)
    for mode in ("L", "CMYK", "P", "RGBA", "I;16"): assert pad_square(Image.new(mode, (9, 30)), 64).mode == "RGB"


def test_the_processor_neither_crops_nor_resizes(world):
    a, b = page(1), page(1).copy()
    ImageDraw.Draw(b).rectangle((0, 0, b.width, 12), fill="black")  # only the part that a centre crop would lose
    pixels = world.image.prepare([a, b]).numpy()
    assert pixels.shape == (2, 3, 64, 64) and np.abs(pixels[0] - pixels[1]).max() > 1


# ---- never itself

def test_a_query_never_receives_its_own_page(world):
    for mode in MODES:
        found = retrieve(world.index, world.stated, world.pairs, top_k=N, mode=mode)
        for r, f in zip(world.records, found, strict=True):
            assert all(e.image_id != r.image_id for c in CHANNELS for e in f[c])


def test_near_duplicates_under_other_names_are_excluded(world):
    root = world.root
    b = io.BytesIO()
    page(3).save(b, "JPEG", quality=45)
    Image.open(b).save(root / "w/images/jpeg.png")
    page(3).resize((60, 130)).save(root / "w/images/half.png")
    page(3).save(root / "w/images/copy.png")
    copies = [record(50 + i, image_id=f"w/{n}", image_path=f"w/images/{n}.png") for i, n in enumerate(("jpeg", "half", "copy"))]
    index = EvidenceIndex.build([record(i) for i in range(8)] + copies, root, root / "dups", world.text, world.image)
    open_hits = index.search(images=[page(3)], top_k=4)[0]["image"]
    assert {"w/03", "w/jpeg", "w/half", "w/copy"} == {e.image_id for e in open_hits}
    for mode in MODES:
        recs = stated([record(i) for i in range(8)])
        f = retrieve(index, recs, [damaged(r, page(i)) for i, r in enumerate(recs)], top_k=9, mode=mode)[3]
        assert not {"w/03", "w/jpeg", "w/half", "w/copy"} & {e.image_id for c in CHANNELS for e in f[c]}
    # a validation record is not in the index: its hash comes from its clean file
    val = record(60, image_id="w/val", image_path="w/images/copy.png")
    f = retrieve(index, [val], [damaged(val, page(3))], top_k=9)[0]
    assert len(f["image"]) == 7 and not {"w/03", "w/jpeg", "w/half", "w/copy"} & {e.image_id for e in f["image"]}
    audit = leakage_audit(index, [val, record(0)])
    assert (audit["near_duplicate"], audit["own_page"]) == (1, 1)


def test_the_rule_keeps_look_alikes_apart():
    def screen(value):
        im = Image.new("RGB", (360, 640), "white")
        d = ImageDraw.Draw(im)
        d.rectangle((0, 0, 360, 60), fill="navy")
        for k, word in enumerate(("Price", "City", "Phone", "Total", "Stock")):
            d.text((20, 90 + k * 100), word, fill="black", font_size=30)
            d.text((180, 90 + k * 100), value[k:] + value[:k], fill="black", font_size=30)
        return im
    looks = [Look(image_hash(im), image=im) for im in map(screen, ("432 xy", "971 ab", "5 long one"))]
    assert not any(verdict(a, b).copy for a in looks for b in looks if a is not b) and verdict(looks[0], looks[0]).copy


def test_own_damage_does_not_weaken_the_exclusion(world):
    black = [damaged(r, Image.new("RGB", (50, 90)), text="") for r in world.records]
    for r, f in zip(world.records, retrieve(world.index, world.records, black, top_k=N), strict=True):
        assert r.image_id not in {e.image_id for c in CHANNELS for e in f[c]} and len(f["image"]) == N - 1


# ---- exactness and determinism

def brute(index, channel, q, top_k, banned):
    s = np.round((index.vectors(channel) @ q).astype("float64"), 5)
    order = [r for r in np.lexsort((np.arange(len(index)), -s)) if r not in banned]
    return order[:top_k]


def test_search_equals_brute_force_under_exclusion(world):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(20, 24)).astype("float32")
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    banned = [set(rng.choice(N, rng.integers(0, N), replace=False).tolist()) for _ in q]
    found = world.index.search(images=q, exclude=[{f"w/{i:02d}" for i in b} for b in banned], top_k=3)
    for f, v, b in zip(found, q, banned, strict=True): assert [e.row for e in f["image"]] == brute(world.index, "image", v, 3, b)


def test_ties_at_the_edge_and_wide_exclusion():
    import faiss
    flat = faiss.IndexFlatIP(2)
    flat.add(np.tile(np.float32([[1, 0]]), (500, 1)))
    q = np.float32([[1, 0], [0, 1]])
    assert top_rows(flat, q[:1], 2, lambda i, r: r >= 0) == [[(0, 1.0), (1, 1.0)]]
    assert top_rows(flat, q, 2, lambda i, r: r >= 490)[0] == [(490, 1.0), (491, 1.0)]
    assert top_rows(flat, q, 2, lambda i, r: r < 0) == [[], []]


def test_order_and_company_do_not_matter(world, tmp_path):
    cache = EvidenceCache(tmp_path / "q.sqlite")
    for mode in MODES:
        whole = rows(retrieve(world.index, world.stated, world.pairs, mode=mode, seed=3))
        back = retrieve(world.index, world.stated[::-1], world.pairs[::-1], mode=mode, seed=3)
        assert rows(back)[::-1] == whole
        assert rows(retrieve(world.index, world.stated, world.pairs, mode=mode, seed=3, cache=cache)) == whole
        assert rows(retrieve(world.index, world.stated, world.pairs, mode=mode, seed=3, cache=cache)) == whole
        if mode != "shuffled":
            assert [rows(retrieve(world.index, [r], [p], mode=mode, seed=3))[0] for r, p in zip(world.stated, world.pairs, strict=True)] == whole


def test_evidence_rows_give_the_vectors(world):
    f = retrieve(world.index, world.records[:1], world.pairs[:1])[0]
    for c in CHANNELS:
        for e in f[c]:
            assert e.channel == c and e.doc_id == e.image_id == f"w/{e.row:02d}"
            q = world.index.encoders[c].encode([query_text(world.pairs[0]) if c == "text" else world.pairs[0].image])[0]
            assert abs(world.index.vectors(c)[e.row] @ q - e.score) < 2e-5
            assert set(e.brief()) == {"image_id", "score", "channel", "text"} and json.dumps(e.brief())
    assert not world.index.text_vectors.flags.writeable


# ---- controls

def test_oracle_gives_pages_that_state_the_answer(world):
    for r, f in zip(world.stated, retrieve(world.index, world.stated, world.pairs, mode="oracle"), strict=True):
        sibling = int(r.image_id[2:]) ^ 1
        assert [[e.row for e in f[c]] for c in CHANNELS] == [[sibling], [sibling]]
    lone = record(0, meta={"entity": "e1"})
    assert retrieve(world.index, [lone, world.stated[0]], world.pairs[:2], mode="oracle")[0] == {"text": [], "image": []}
    with pytest.raises(ConfigError, match=f"oracle evidence cannot be formed for sample '{lone.sample_id}'.*no other page holds an accepted answer"):
        retrieve(world.index, [lone], world.pairs[:1], mode="oracle")


def test_shuffled_evidence_belongs_to_another_question(world):
    partner = donors(world.records, seed=0)
    for i, j in enumerate(partner):
        a, b = world.records[i], world.records[j]
        assert a.image_id != b.image_id and a.meta["entity"] != b.meta["entity"]
    assert len(set(partner)) > len(partner) // 2 and donors(world.records, seed=1) != partner
    plain = retrieve(world.index, world.records, world.pairs)
    found = retrieve(world.index, world.records, world.pairs, mode="shuffled")
    for i, j in enumerate(partner):
        banned = {world.records[i].image_id, world.records[j].image_id}
        assert not banned & {e.image_id for c in CHANNELS for e in found[i][c]}
        kept = [e.row for e in plain[j]["text"] if e.image_id not in banned]
        assert [e.row for e in found[i]["text"]][:len(kept)] == kept
    with pytest.raises(ConfigError, match="partner"): donors(world.records[:2])


def test_random_depends_on_seed_and_sample_only(world):
    a, b = (retrieve(world.index, world.records, world.pairs, mode="random", seed=s) for s in (0, 1))
    assert rows(a) != rows(b)
    assert all(len(f[c]) == 3 and [e.score for e in f[c]] == sorted((e.score for e in f[c]), reverse=True) for f in a for c in CHANNELS)


def test_channels_and_bad_arguments(world):
    for mode in MODES:
        f = retrieve(world.index, world.stated, world.pairs, channels=("text",), mode=mode)[0]
        assert f["text"] and f["image"] == []
    assert retrieve(world.index, [], []) == []
    assert retrieve(world.index, world.records[:1], world.pairs[:1], channels=()) == [{"text": [], "image": []}]
    for kw, said in ((dict(mode="nearby"), "expected one of"), (dict(channels=("audio",)), "audio"), (dict(top_k=0), "top_k")):
        with pytest.raises(ConfigError, match=said): retrieve(world.index, world.records, world.pairs, **kw)
    with pytest.raises(ConfigError, match="one for each"): retrieve(world.index, world.records, world.pairs[:2])
    with pytest.raises(ConfigError, match="equal length"): world.index.search(texts=["a"], exclude=[set(), set()])
    with pytest.raises(ConfigError): world.index.search()


# ---- cache

def test_cache_encodes_once_and_returns_equal_vectors(world, tmp_path):
    calls = []
    counting = SimpleNamespace(fingerprint="t", encode=lambda items: (calls.extend(items), world.text.encode(items))[1])
    cache = EvidenceCache(tmp_path / "sub/q.sqlite")
    a = cache.vectors(counting, ["x", "y", "x"])
    assert calls == ["x", "y"] and np.array_equal(a[0], a[2])
    assert np.array_equal(EvidenceCache(tmp_path / "sub/q.sqlite").vectors(counting, ["y", "z"])[0], a[1]) and calls == ["x", "y", "z"]
    other = SimpleNamespace(fingerprint="other", encode=lambda items: np.zeros((len(items), 2), "float32"))
    assert cache.vectors(other, ["x"]).shape == (1, 2)
    im, flipped = page(0), page(0).transpose(Image.Transpose.ROTATE_180)
    v = cache.vectors(world.image, [im, flipped, im])
    assert np.array_equal(v[0], v[2]) and not np.array_equal(v[0], v[1])


# ---- audit and command line

def test_audit_sees_questions_and_hints_in_text(world):
    recs = [record(0, pseudo_text="Menu  ZZQUESTION 0? soup"), record(1), record(2)]
    index = EvidenceIndex.build(recs, world.root, world.root / "leaky", world.text, world.image)
    audit = leakage_audit(index, recs)
    assert (audit["question_in_text"], audit["examples"]["question_in_text"]) == (1, [recs[0].sample_id])
    assert leakage_audit(world.index, world.records)["question_in_text"] == 0


def test_command_line(world, capsys):
    path = world.root / "train.jsonl"
    write_jsonl(path, [r.to_dict() for r in world.records])
    flags = ["--jsonl", str(path), "--image_root", str(world.root), "--out_dir", str(world.root / "cli"), "--batch_size", "4"]
    main([*flags, "--image_encoder", str(world.root / "clip")])
    assert f"{N} documents" in capsys.readouterr().out
    assert EvidenceIndex.load(world.root / "cli").fingerprint == world.index.fingerprint
    manifest = json.loads((world.root / "cli/manifest.json").read_text())
    assert manifest["config"]["batch_size"] == 4 and len(manifest["inputs"]) == 1 and len(manifest["outputs"]) >= 6
    with pytest.raises(SystemExit) as e: main([*flags, "--image_encoder", str(world.root / "no_clip")])
    assert e.value.code == 2 and "no_clip" in capsys.readouterr().err
    rowless = [world.records[0].to_dict(), world.records[2].to_dict() | {"image_path": "w/images/gone.png"}]
    write_jsonl(path, rowless)
    with pytest.raises(SystemExit) as e: main([*flags, "--image_encoder", str(world.root / "clip")])
    assert e.value.code == 2 and "train.jsonl:2" in capsys.readouterr().err


def test_help_is_fast_and_documents_every_flag():
    got = subprocess.run([sys.executable, "-c", "import sys; from r3nb.indices import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"],
                         capture_output=True, text=True, timeout=60)
    assert all(f"--{f}" in got.stdout for f in ("jsonl", "image_root", "out_dir", "text_encoder", "image_encoder", "batch_size")), got.stderr
    assert got.stdout.strip().endswith("False")
