"What a script that uses r3nb may rely on. It is not executed: scripts/typecheck.py holds it against the annotations of the package."
from pathlib import Path

from PIL.Image import Image

from r3nb.compare import CompareConfig, compare_files
from r3nb.core import QARecord, read_records
from r3nb.corrupt import Corrupted, corrupt
from r3nb.data import DATASETS, UnifyConfig, unify
from r3nb.eval import Answer, Case, EvalConfig, Readers, evaluate, parse_mode
from r3nb.explorer import Ask, Explored, Explorer
from r3nb.indices import EvidenceIndex, IndexConfig, build_index, retrieve
from r3nb.metrics import area, score
from r3nb.model import R3Config, R3Model
from r3nb.ocr import OCRResult, load_engine
from r3nb.show import View, show_evidence, show_sample
from r3nb.train import TrainConfig, train


def questions(folder: Path) -> list[QARecord]:
    print(DATASETS["chartqa"].metric, unify(UnifyConfig("menus", str(folder), str(folder/"unified"))))
    return read_records(folder/"val.jsonl", folder/"raw")


def damaged(record: QARecord, page: Image) -> Corrupted:
    seen = corrupt(record, page, .6, seed=1, families=["jpeg", "stains:coffee"])
    text: str = seen.pseudo_text
    picture: Image = seen.image
    return seen if text and picture.width else corrupt(record, page, 0)


def evidence(index: EvidenceIndex, record: QARecord, seen: Corrupted) -> list[str]:
    found, = retrieve(index, [record], [seen], top_k=3)
    direct = index.search(texts=[record.question], exclude=[{record.image_id}])
    print(len(direct), len(found.held), show_evidence(found, None, record.answers))
    return [e.text for pages in found.values() for e in pages]


def reading(path: Path, page: Image) -> str:
    read: OCRResult = load_engine("r3nb.ocr:RapidOCREngine", {"det_side": 1600})(page)
    return f"{path}: {read.text} ({read.conf:.2f})"


def answers(cfg: EvalConfig, index: EvidenceIndex, case: Case) -> dict[str, float]:
    reader, record = Readers(cfg, index), case.record
    said: list[Answer] = [reader.answer(parse_mode(m), [case], None)[0] for m in ("base", "base+text")]
    return {a.text: float(score(record.dataset, a.text, record.answers, "anls")["score"]) for a in said}


def explored(question: str, scan: Path) -> View:
    explorer = Explorer.demo()
    shown: Explored = explorer(Ask(picture=scan.read_bytes(), question=question, level=.4, off=("gate",)))
    print(shown.answers["r3"].text, [r.question for r in explorer.samples("screenqa")], explorer.parts())
    return shown.view() + show_sample(shown.record, shown.clean, seen=shown.seen)


def study(folder: Path) -> float:
    index = build_index(IndexConfig(jsonl=str(folder/"train.jsonl"), image_root=str(folder/"raw"), out_dir=str(folder/"index")))
    model = R3Model.from_pretrained(folder/"backbone", R3Config(lora_r=8))
    checkpoint: Path = train(TrainConfig(model_name=str(folder/"backbone"), train_jsonl=str(folder/"train.jsonl"), image_root=str(folder/"raw"), max_steps=10))
    summary = evaluate(EvalConfig(checkpoint_dir=str(checkpoint), eval_mode=["rag", "r3"], corruption_levels=[0, .6]))
    print(model.config.lora_r, index.fingerprint, summary, compare_files(CompareConfig([str(folder)], value="score")))
    return area({0: .9, .6: .5})
