"Types: the public interface as a user's script sees it, methods that are patched on among them, and wrong use is an error"
import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/"scripts"))
typecheck = importlib.import_module("typecheck")
sys.path.remove(str(ROOT/"scripts"))

WRONG = { # a line that uses r3nb wrongly: the code of its error
    "explorer.evidnce(1, 2)": "missing-attribute", # a patched method under a wrong name
    "Explorer.demo().samples(3)": "bad-argument-type",
    "explorer(Ask('a', levl=.4))": "unexpected-keyword",
    "explorer.open('val.jsonl')": "missing-argument", # a patched class method
    "whole: int = explorer(Ask('a'))": "bad-assignment", # a patched __call__
    "corrupt(record, page, '0.4')": "bad-argument-type",
    "corrupt(record)": "missing-argument",
    "print(seen.pseudo_txt)": "missing-attribute",
    "R3Config(lora_r='8')": "bad-argument-type",
    "number: str = score('chartqa', '1', ['1'])": "bad-assignment",
    "case.record.sampel_id": "missing-attribute"}
HEAD = """from PIL.Image import Image
from r3nb.core import QARecord
from r3nb.corrupt import Corrupted, corrupt
from r3nb.eval import Case
from r3nb.explorer import Ask, Explorer
from r3nb.metrics import score
from r3nb.model import R3Config

def use(explorer: Explorer, record: QARecord, page: Image, seen: Corrupted, case: Case):
"""


def test_the_package_and_a_user_of_it_have_no_errors():
    assert typecheck.check([typecheck.USE], package=True) == []


def test_wrong_use_is_an_error_where_it_stands(tmp_path):
    script = tmp_path/"script.py"
    script.write_text(HEAD + "".join(f"    {line}\n" for line in WRONG))
    at, found = HEAD.count("\n") + 1, typecheck.check([script])
    for n, (line, code) in enumerate(WRONG.items(), at):
        assert any(f.startswith(f"{script}:{n}: ") and f"[{code}]" in f for f in found), f"{line}: not found in\n" + "\n".join(found)
    assert {int(f.split(":")[1]) for f in found} == set(range(at, at + len(WRONG))), found


@pytest.mark.parametrize("code,line,said", [
    ("def f(x: int)->str:\n    return x\n", 4, "bad-return"), ("def f(x: Strng)->str:\n    return x\n", 3, "unknown-name"),
    ("def f(x: int='a'): pass\n", 3, "bad-function-definition"),
    ("class A: pass\n\n@patch\ndef f(self:A)->int:\n    'Doc'\n    return ''\n", 8, "bad-return")])
def test_a_wrong_annotation_in_the_package_is_an_error(tmp_path, monkeypatch, code, line, said):
    "With the line of the module, also where a method was moved into its class"
    (tmp_path/"r3nb").mkdir()
    (tmp_path/"r3nb/__init__.py").touch()
    (tmp_path/"r3nb/part.py").write_text("from fastcore.basics import patch\n\n" + code)
    (tmp_path/"pyrefly.toml").write_text((ROOT/"pyrefly.toml").read_text())
    monkeypatch.setattr(typecheck, "ROOT", tmp_path)
    found, = typecheck.check(package=True)
    assert found.startswith(f"r3nb/part.py:{line}: ") and f"[{said}]" in found


def test_patched_functions_become_methods():
    code = "class A:\n    n = 1\n\nclass B: pass\n\n@patch(as_prop=True)\ndef f(self:A)->int: return self.n\n\n@patch(cls_method=True)\ndef g(cls:B,\n    x:int, # a\n)->B:\n    return cls()\n\n@patch\ndef h(self:'Foreign'): pass\n"
    rows = typecheck.joined(code)
    tree = ast.parse("\n".join(text for _, text in rows))
    inside = {c.name: {f.name: [ast.unparse(d) for d in f.decorator_list] for f in c.body if isinstance(f, ast.FunctionDef)} for c in tree.body if isinstance(c, ast.ClassDef)}
    assert inside == {"A": {"f": ["property"]}, "B": {"g": ["classmethod"]}} and any(isinstance(f, ast.FunctionDef) and f.name == "h" for f in tree.body)
    assert [n for n, text in rows if "return cls()" in text] == [13]


def test_a_script_of_ones_own_can_be_checked(tmp_path):
    (tmp_path/"mine.py").write_text("from r3nb.explorer import Explorer\nn: int = Explorer.demo()\n")
    done = subprocess.run([sys.executable, ROOT/"scripts/typecheck.py", tmp_path/"mine.py"], capture_output=True, text=True)
    assert done.returncode == 1 and f"{tmp_path}/mine.py:2: " in done.stderr and "error: 1 wrong type" in done.stderr
