"""Photographs and charts of odd modes and shapes through opening, OCR, corruption, unifying, merging and indexing."""
import json
import struct
import zlib
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import skimage
from bench import peak_of
from PIL import Image, ImageChops, ImageDraw, ImageFont

from r3nb import corrupt as C
from r3nb import data as D
from r3nb import ocr as O
from r3nb.core import DataError, ImageError, QARecord, check_image, open_image, write_json, write_jsonl
from r3nb.documents import PageStore, feed

W, H = 320, 120
PHOTOS = {"photo.jpg": Path(matplotlib.get_data_path())/"sample_data/grace_hopper.jpg",
          **{n: Path(skimage.__file__).parent/"data"/n for n in ("rocket.jpg", "page.png", "multipage.tif", "no_time_for_that_tiny.gif", "retina.jpg")}}
WIDE = {"wide.png": (20_000, 60), "wide.jpg": (20_000, 60), "tall.png": (60, 20_000)}


def chart(size=(W, H), text="Battery 87"):
    "A bar and a text, in RGB"
    im = Image.new("RGB", size, "white")
    d = ImageDraw.Draw(im)
    d.text((20, 20), text, font=ImageFont.load_default(size=28), fill="black")
    d.rectangle((20, 80, size[0]//2, 100), fill=(200, 60, 40))
    return im


def deep(kind):
    "The chart in grey, with more than eight bits a pixel"
    grey = np.asarray(chart().convert("L"))
    return {"16": Image.fromarray(grey.astype(np.uint16)*257), "32": Image.fromarray(grey.astype(np.int32)*257),
            "unit": Image.fromarray(grey.astype(np.float32)/255), "float": Image.fromarray(grey.astype(np.float32))}[kind]


def see_through(im):
    "Black ink on nothing"
    out = Image.new("RGBA", im.size, (0, 0, 0, 0))
    out.paste(im, mask=ImageChops.invert(im.convert("L")).point(lambda v: 255*(v > 40)))
    return out


def zoo(folder):
    "Write every kind of picture; names of those that show the chart at its size"
    folder.mkdir(parents=True)
    im, frames, turned = chart(), [chart(text="frame 2"), chart(text="frame 3")], Image.Exif()
    turned[0x0112] = 6 # turn clockwise by 90 degrees to see it upright
    save = lambda name, im, **kw: im.save(folder/name, **kw)
    save("rgb.png", im); save("rgb.bmp", im); save("rgb.webp", im); save("lossless.webp", im, lossless=True)
    save("rgb.tif", im); save("lzw.tiff", im, compression="tiff_lzw"); save("best.jpeg", im, quality=95); save("progressive.jpg", im, progressive=True, quality=95)
    save("UPPER.JPG", im, quality=94, format="JPEG"); save("really_a_png.jpg", im, format="PNG"); save("name with blanks, ümläut.png", im)
    save("cmyk.jpg", im.convert("CMYK"), quality=95); save("cmyk.tif", im.convert("CMYK")); save("lab.tif", im.convert("LAB")); save("ycbcr.tif", im.convert("YCbCr"))
    save("grey.png", im.convert("L")); save("grey.jpg", im.convert("L"), quality=95); save("bilevel.png", im.convert("1")); save("bilevel.tif", im.convert("1"), compression="group4")
    save("palette.png", im.convert("P")); save("palette.gif", im.convert("P")); save("palette_4_bits.png", im.quantize(16), bits=4)
    save("rgba.png", see_through(im)); save("rgba.webp", see_through(im), lossless=True); save("la.png", see_through(im).convert("LA"))
    save("palette_clear.png", see_through(im).quantize(16)); save("clear.gif", see_through(im)); save("key_colour.png", im, transparency=(255, 255, 255))
    save("deep.png", deep("16")); save("deep.tif", deep("16")); save("deep_32.tif", deep("32")); save("unit.tif", deep("unit")); save("float.tif", deep("float"))
    (folder/"deep_big_endian.tif").write_bytes(big_endian_tiff(np.asarray(deep("16"))))
    save("animated.gif", im, save_all=True, append_images=frames, duration=50); save("animated.png", im, save_all=True, append_images=frames)
    save("animated.webp", im, save_all=True, append_images=frames, lossless=True); save("pages.tif", im, save_all=True, append_images=frames)
    save("turned.jpg", im.rotate(90, expand=True), exif=turned, quality=95); save("turned.png", im.rotate(90, expand=True), exif=turned)
    (folder/"notes_behind.png").write_bytes((folder/"rgb.png").read_bytes() + b"appended by a camera"*9)
    same = sorted(p.name for p in folder.iterdir())
    for kind in ("png", "jpg", "gif", "bmp", "webp"): save(f"dot.{kind}", Image.new("RGB", (1, 1), (200, 60, 40)))
    save("blank.png", Image.new("RGB", (90, 70), "white")); save("clear.png", Image.new("RGBA", (40, 40), (0, 0, 0, 0)))
    for name, size in WIDE.items(): save(name, chart(size))
    for name, path in PHOTOS.items(): (folder/name).write_bytes(path.read_bytes())
    return same


def big_endian_tiff(a):
    "A 16-bit grey TIFF in Motorola byte order, which Pillow reads but does not write"
    tags = [(256, 4, a.shape[1]), (257, 4, a.shape[0]), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, a.shape[0]), (279, 4, a.size*2)]
    body = a.astype(">u2").tobytes()
    entries = b"".join(struct.pack(">HHI", t, k, 1) + (struct.pack(">HH", v, 0) if k == 3 else struct.pack(">I", v)) for t, k, v in tags)
    return b"MM\0*" + struct.pack(">I", 8 + len(body)) + body + struct.pack(">H", len(tags)) + entries + b"\0\0\0\0"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    return root, zoo(root/"raw/odd/images")


def test_every_mode_opens_as_the_same_picture(world):
    root, same = world
    want = np.asarray(chart().convert("L"), float)
    assert len(same) > 35
    for name in same:
        path = root/"raw/odd/images"/name
        check_image(path)
        im = open_image(path)
        assert (im.mode, im.size) == ("RGB", (W, H)), name
        assert np.abs(np.asarray(im.convert("L"), float) - want).mean() < 12, name


def test_a_16_bit_scan_keeps_its_greys(tmp_path):
    ramp = np.linspace(0, 65535, 256*4).astype(np.uint16).reshape(4, 256)
    for name in ("r.png", "r.tif"):
        Image.fromarray(ramp).save(tmp_path/name)
        got = np.asarray(open_image(tmp_path/name))[..., 0].astype(int)
        assert np.abs(got - ramp/257).max() <= .5 and len(np.unique(got)) == 256
    Image.fromarray(np.array([[np.nan, 1]], np.float32)).save(tmp_path/"nan.tif")
    with pytest.raises(ImageError, match="nan.tif.*not numbers"): open_image(tmp_path/"nan.tif")


@pytest.fixture(scope="module")
def readings(world):
    "The real engine over the whole folder, by the command"
    root, _ = world
    O.main(["--image_dir", str(root/"raw/odd"), "--out", str(root/"ocr.jsonl"), "--workers", "1"])
    return {Path(r["image"]).name: r for r in D.read_ocr_cache(root/"ocr.jsonl").values()}


def test_ocr_reads_every_mode(world, readings):
    root, same = world
    read = {p.name: readings.get(p.name) for p in (root/"raw/odd/images").iterdir()}
    copies = {name for name, r in read.items() if r is None} # identical files are read once
    assert copies <= {"rgb.png", "really_a_png.jpg", "name with blanks, ümläut.png"} and len(copies) == 2
    for name in set(same) - copies: assert "87" in read[name]["text"] and "attery" in read[name]["text"], (name, read[name]["text"])
    for name in ("dot.png", "dot.gif", "blank.png", "clear.png"): assert (read[name]["text"], read[name]["conf"]) == ("", 0)
    assert len(read["page.png"]["words"]) > 20 # a real scan
    for r in readings.values(): assert all(np.isfinite(w["box"]).all() and w["box"][0] <= w["box"][2] for w in r["words"])


@pytest.mark.parametrize("level", [.2, 1.])
def test_corruption_of_every_picture(world, level):
    root, _ = world
    for path in sorted((root/"raw/odd/images").iterdir()):
        im, record = open_image(path), QARecord(path.name, "d", "val", path.stem, path.name, "q", "a", ["a"], "Battery 87 per cent")
        a = C.corrupt(record, im, level, seed=1)
        assert a.image.size == im.size and a.image.tobytes() != im.tobytes() and 0 <= a.c_vis < 1 and a.c_text < 1, path.name
        if im.width*im.height < 10**6: assert a.image.tobytes() == C.corrupt(record, open_image(path), level, seed=1).image.tobytes()


@pytest.mark.parametrize("family", C.IMAGE_FAMILIES)
def test_each_family_on_extreme_shapes(family):
    for size in ((1, 1), (1, 500), (500, 1), (70_000, 3)):
        clean = np.asarray(chart(size) if min(size) > 2 else Image.new("RGB", size, (90, 120, 40)))
        out = C.damage_image(clean, .9, (family,), (0, "x"))
        assert out.shape == clean.shape and out.dtype == np.uint8 and not np.array_equal(out, clean), size


def test_the_gallery_command_shows_every_picture(world):
    root, _ = world
    files = [p for p in (root/"raw/odd/images").iterdir()]
    C.main([str(root/"raw/odd/images"), "--out", str(root/"gallery"), "--levels", "0.5", "--max_samples", "12"])
    assert len(list((root/"gallery/images").iterdir())) == 12
    found = {r.sample_id for r, _ in C.gallery_samples(C.CorruptConfig(str(root/"raw/odd/images"), max_samples=1000))}
    assert found == {p.name for p in files}


def test_the_gallery_goes_on_after_a_bad_picture(tmp_path):
    chart().save(tmp_path/"a.png")
    (tmp_path/"b.png").write_bytes((tmp_path/"a.png").read_bytes()[:300])
    chart(text="Salt 424").save(tmp_path/"c.tif")
    for _ in range(2): # what the first run wrote into the folder is not taken for a picture of it
        with pytest.raises(ImageError, match="b.png"): C.gallery(C.CorruptConfig(str(tmp_path), str(tmp_path/"out"), levels=[0, .5]))
    assert len((tmp_path/"out/corruption.jsonl").read_text().splitlines()) == 4 and (tmp_path/"out/gallery.png").exists()
    for p in tmp_path.glob("[ac].*"): p.write_bytes(b"")
    with pytest.raises(ImageError, match="3 problems"): C.gallery(C.CorruptConfig(str(tmp_path), str(tmp_path/"out"), levels=[.5], overwrite=True))


def test_unify_and_merge_take_them_all(world, readings):
    root, same = world
    raw = root/"raw/odd"
    files = sorted(p.relative_to(raw).as_posix() for p in (raw/"images").iterdir())
    write_json(raw/"dataset.json", {"metric": "anls"})
    stems = {} # an image id has no ending: of rgb.png, rgb.bmp, ... one goes in
    for f in files: stems.setdefault(Path(f).stem, f)
    write_jsonl(raw/"odd_raw_train.jsonl", [{"image": f, "question": "How full?", "answers": ["87"]} for f in stems.values()])
    out = D.unify(D.UnifyConfig("odd", str(raw), str(root/"u"), image_prefix="odd", ocr_cache=str(root/"ocr.jsonl")))["train"]
    table = D.merge([out], root/"train.jsonl", image_root=root/"raw")
    assert table[0]["images"] == len(stems) and table[0]["with text"] > 25
    (raw/"dataset.json").unlink()


def test_indexing_takes_them_all(world):
    from r3nb.indices import ImageEncoder, image_hash, pad_square
    from r3nb.mini import clip_dir
    root, same = world
    images = {p.name: open_image(p) for p in sorted((root/"raw/odd/images").iterdir())}
    for name, im in images.items():
        assert pad_square(im, 64).size == (64, 64) and len(image_hash(im)) == 64, name
    vectors = ImageEncoder(clip_dir()).encode(list(images.values()))
    assert np.isfinite(vectors).all() and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    at = {name: vectors[i] for i, name in enumerate(images)}
    for name in same: # the same picture in another mode has the same vector, as far as it has the same colours
        twin = "grey.png" if images[name].convert("HSV").getextrema()[1][1] == 0 else "rgb.png"
        assert at[name] @ at[twin] > .98, (name, twin)


def bomb():
    "A PNG of a few bytes that claims 60,000 x 60,000 pixels"
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"\0"*99)) + chunk(b"IEND", b"")


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path):
    folder = tmp_path/"images"
    folder.mkdir()
    for kind in ("png", "jpg", "gif", "bmp", "webp", "tif"):
        chart().save(folder/f"whole.{kind}")
        data = (folder/f"whole.{kind}").read_bytes()
        (folder/f"half.{kind}").write_bytes(data[:len(data)//2])
    (folder/"empty.png").write_bytes(b"")
    (folder/"text.jpg").write_text("<html>404 not found</html>")
    (folder/"bomb.png").write_bytes(bomb())
    bad = {f"half.{k}" for k in ("png", "jpg", "gif", "bmp", "webp", "tif")} | {"empty.png", "text.jpg", "bomb.png"}
    for name in bad:
        with pytest.raises(ImageError, match=name): open_image(folder/name)
    with pytest.raises(DataError) as e: O.run_ocr(O.OCRConfig(str(folder), str(tmp_path/"ocr.jsonl"), workers=1))
    assert "9 of 15 images" in str(e.value) and all(name in str(e.value) for name in bad)
    assert {r["image"] for r in D.read_ocr_cache(tmp_path/"ocr.jsonl").values()} == {f"whole.{k}" for k in ("png", "jpg", "gif", "bmp", "webp", "tif")}


@pytest.mark.slow
def test_a_poster_20000_pixels_wide_needs_bounded_memory(tmp_path):
    "20,000 x 2,000: 120 MB of pixels, read and damaged in a process of its own with a few copies of them at most"
    chart((20_000, 2_000)).save(tmp_path/"poster.png")
    code = ("import sys, json\nfrom r3nb.core import QARecord, open_image\nfrom r3nb.corrupt import corrupt\nfrom r3nb.ocr import RapidOCREngine\n"
            "im = open_image(sys.argv[1])\ntext = RapidOCREngine()(im).text\nr = QARecord('s', 'd', 'val', 'i', 'i.png', 'q', 'a', ['a'], 'Battery 87')\n"
            "size = [corrupt(r, im, .8, seed, families=f).image.size for seed, f in enumerate(('gaussian_blur', 'gaussian_noise', 'occlusion', 'jpeg'))]\n"
            "print(json.dumps(size))")
    lines, peak = peak_of(code, tmp_path/"poster.png")
    assert json.loads(lines[-1]) == [[20_000, 2_000]]*4 and peak < 1_800, f"{peak:.0f} MB"
    print(f"peak {peak:.0f} MB")


def test_a_gallery_of_many_and_of_a_very_long_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(C, "OVERVIEW", 2)
    for name in ("a", "b", "c", "n"*240): Image.new("RGB", (12, 9), (len(name), 0, 90)).save(tmp_path/f"{name}.png")
    C.main([str(tmp_path), "--out", str(tmp_path/"out"), "--levels", "0.5"])
    assert len(list((tmp_path/"out/images").iterdir())) == 4 and Image.open(tmp_path/"out/gallery.png").height < 1000
    assert "the first 2 of 4 samples" in capsys.readouterr().out


def test_indexing_names_every_bad_picture_at_once(tmp_path):
    rows = [QARecord(f"s{i}", "s", "train", f"s/{i}", f"{i}.png", "q", "a", ["a"], f"text {i}") for i in range(6)]
    for i in range(4): chart().save(tmp_path/f"{i}.png")
    (tmp_path/"1.png").write_bytes((tmp_path/"0.png").read_bytes()[:200])
    write_jsonl(tmp_path/"a.jsonl", rows)
    with pytest.raises(ImageError) as e: feed(PageStore(image_root=tmp_path), tmp_path/"a.jsonl")
    assert "3 problems" in str(e.value) and all(f"a.jsonl:{n}: " in str(e.value) and f"{n - 1}.png" in str(e.value) for n in (2, 5, 6))
