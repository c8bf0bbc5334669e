"""Check the types of the public interface: what r3nb's annotations promise, and tests/typed_use.py, which uses r3nb as you would.

    python scripts/typecheck.py                      exit 1 on an error
    python scripts/typecheck.py my_script.py         hold a script of yours against the annotations of r3nb

`@patch` gives a class its methods one by one, where the story needs them, and no type checker sees such a method. So pyrefly is given a
copy of the package in which each of them stands inside its class. Errors name the lines of r3nb/, where a comment names the cell.
"""
import ast
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USE = ROOT/"tests/typed_use.py"
FOUND = re.compile(r"ERROR (.+?):(\d+):[^ ]* (.*)")


def patched(f):
    "The decorator `@patch` of a function, or None"
    return next((d for d in getattr(f, "decorator_list", ()) if ast.unparse(d).partition("(")[0] == "patch"), None)


def owner(f):
    "The class that a patched function belongs to: the annotation of its first parameter"
    return ast.unparse(f.args.args[0].annotation).strip("'\"")


def as_method(f, source):
    "A patched function as it would stand in its class: pairs of a line's number and its text"
    mark, me = patched(f), f.args.args[0]
    kind = {"cls_method=True": "@classmethod", "as_prop=True": "@property"}
    rows = [(n, source[n - 1]) for n in range(f.decorator_list[0].lineno, f.end_lineno + 1)]
    for n, text in rows:
        if n == mark.lineno: text = next((new for option, new in kind.items() if option in ast.unparse(mark)), "")
        if n == me.lineno: text = re.sub(rf"\b{me.arg}\s*:\s*['\"]?{owner(f)}['\"]?", me.arg, text, count=1)
        yield n, f"    {text}"


def joined(code):
    "A module with every patched function inside its class: pairs of a line's number in the original and its text"
    source, tree = code.splitlines(), ast.parse(code)
    classes = {c.name: c for c in tree.body if isinstance(c, ast.ClassDef)}
    ends, short = {c.end_lineno: c.name for c in classes.values()}, {c.lineno: c.body[0].col_offset for c in classes.values() if c.body[0].lineno == c.lineno}
    moved = [f for f in tree.body if patched(f) and owner(f) in classes]
    gone = {n for f in moved for n in range(f.decorator_list[0].lineno, f.end_lineno + 1)}
    out = [(1, "from __future__ import annotations")] # a method may now stand above a class that its annotations name
    for n, text in enumerate(source, 1):
        if n in short: out += [(n, text[:short[n]]), (n, f"    {text[short[n]:]}")] # class A: pass
        elif n not in gone: out.append((n, text))
        for f in moved:
            if ends.get(n) == owner(f): out += as_method(f, source)
    return out


def check(files=(), package=False):
    "Errors in files that use r3nb, and in the package itself, as `file:line: message`"
    with tempfile.TemporaryDirectory() as d:
        root, where = Path(d).resolve(), {}
        (root/"r3nb").mkdir()
        shutil.copy(ROOT/"pyrefly.toml", root)
        for path in (ROOT/"r3nb").glob("*.py"):
            rows = joined(path.read_text(encoding="utf-8"))
            (root/"r3nb"/path.name).write_text("\n".join(text for _, text in rows) + "\n", encoding="utf-8")
            where[f"r3nb/{path.name}"] = [n for n, _ in rows]
        for file in files: shutil.copy(file, root)
        named = {Path(file).name: str(file) for file in files}
        tool = Path(sys.executable).with_name("pyrefly")
        done = subprocess.run([tool, "check", *named, *(where if package else ()), "--python-interpreter-path", sys.executable, "--output-format", "min-text"],
                              cwd=root, capture_output=True, text=True)
    found = [m.groups() for line in done.stdout.splitlines() if (m := FOUND.match(line))]
    if done.returncode and not found: sys.exit(f"error: pyrefly could not check\n{done.stdout}{done.stderr}")
    return [f"{named.get(file, file)}:{where[file][int(n) - 1] if file in where else n}: {said}" for file, n, said in found]


def main():
    mine = sys.argv[1:]
    found = check(mine or [USE], package=not mine)
    if found: sys.exit("\n".join([*found, f"error: {len(found)} wrong type{'s' * (len(found) > 1)}"]))
    print("types: no errors")


if __name__ == "__main__": main()
