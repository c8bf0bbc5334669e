"PDFs written byte by byte, whole or broken on purpose"


def pdf(path, objects, root=1, trailer=""):
    "Write objects (number -> its text, or a pair of a dictionary and the bytes of its stream) with a true table of references"
    out, at = bytearray(b"%PDF-1.7\n"), {}
    for n, o in sorted(objects.items()):
        at[n] = len(out)
        if isinstance(o, tuple): body = o[0].replace(">>", f"/Length {len(o[1])} >>", 1).encode() + b"\nstream\n" + o[1] + b"\nendstream"
        else: body = o.encode("latin-1")
        out += f"{n} 0 obj\n".encode() + body + b"\nendobj\n"
    start, size = len(out), max(at) + 1
    out += f"xref\n0 {size}\n0000000000 65535 f \n".encode()
    for n in range(1, size): out += (f"{at[n]:010d} 00000 n \n" if n in at else "0000000000 00000 f \n").encode()
    out += f"trailer << /Size {size} /Root {root} 0 R {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode()
    path.write_bytes(out)
    return path


def page(content=3, box=(0, 0, 300, 200), more="", fonts="/F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"):
    return f"<< /Type /Page /Parent 2 0 R /MediaBox [{' '.join(map(str, box))}] /Contents {content} 0 R /Resources << /Font << {fonts} >> >> {more} >>"


def text(words, x=40, y=100, size=24, font="F1", mode=0): return ("<< >>", f"BT /{font} {size} Tf {mode} Tr {x} {y} Td ({words}) Tj ET".encode("latin-1"))


def document(path, pages, missing=(), extra=None, catalog=""):
    "A PDF of pages, each a pair of its content and options of `page`; `missing` pages are listed and not there"
    kids, objects = [], {}
    for i, (content, options) in enumerate(pages):
        n = 10 + 2*i
        kids.append(n)
        if i not in missing: objects |= {n: page(n + 1, **options), n + 1: content}
    objects |= {1: f"<< /Type /Catalog /Pages 2 0 R {catalog} >>", 2: f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{k} 0 R' for k in kids)}] >>"}
    return pdf(path, objects | (extra or {}))


def form(path, field, appearance=None, needs=True):
    "A page with one widget, of these entries, perhaps with an appearance of its own"
    ap = "/AP << /N 90 0 R >>" if appearance else ""
    extra = {80: f"<< /Type /Annot /Subtype /Widget /Rect [40 60 260 100] /F 4 /P 10 0 R /DA (/Helv 18 Tf 0 g) /T (total) {field} {ap} >>",
             81: "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"}
    if appearance: extra[90] = ("<< /Type /XObject /Subtype /Form /BBox [0 0 220 40] /Resources << /Font << /Helv 81 0 R >> >> >>", appearance)
    acro = f"/AcroForm << /Fields [80 0 R] /DR << /Font << /Helv 81 0 R >> >> /DA (/Helv 18 Tf 0 g) {'/NeedAppearances true' if needs else ''} >>"
    return document(path, [(text("Invoice total:", y=140), {"more": "/Annots [80 0 R]"})], extra=extra, catalog=acro)
