"""Endpoints: every fault in one request of five, many questions at once, kills, refusals, the prompts of the local model, and a real `transformers serve`."""
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import families
import numpy as np
import openai._base_client
import pytest
import tiny
from chat import KINDS, Chat
from PIL import Image

from r3nb.core import ConfigError, QARecord, read_json, read_jsonl, rng, write_jsonl
from r3nb.endpoint import COUNTED, GIVE_UP, Endpoint, EndpointError, Pieces, api_url
from r3nb.eval import EvalConfig, damage, evaluate, run_key, sweep

MODES = ["base", "base+text"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Pages and records on disk, an index over them, and a tiny backbone"
    d = tmp_path_factory.mktemp("world")
    w = tiny.world(d, 8)
    w.dir, w.backbone = d, tiny.backbone(d/"backbone")
    return w


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    "Wait a twentieth of a second where the client would begin with half a second"
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", .05)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def config(w, url, out, **kw):
    return EvalConfig(endpoint=url, image_root=str(w.root), index_dir=str(w.index), out_dir=str(out), n_boot=20,
                      **{"val_jsonl": str(w.jsonl), "model_name": "tiny", "eval_mode": MODES, "corruption_levels": [0, .6], "max_new_tokens": 5} | kw)


def rows_of(out): return [r for _, r in read_jsonl(Path(out)/"predictions.jsonl")]


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    "The predictions of a server without faults"
    out = tmp_path_factory.mktemp("whole")/"out"
    with Chat() as server: sweep(config(world, server.url, out))
    assert len(server.log) == 8 * 2 * 2
    return (out/"predictions.jsonl").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_one_failure_in_five_still_gives_every_answer(world, whole, tmp_path, kind):
    with Chat(fault=lambda i, asked: kind if i % 5 == 4 else None) as server:
        path = sweep(config(world, server.url, tmp_path/"out", timeout=.5 if kind == "slow" else 30))
    assert path.read_bytes() == whole and not (tmp_path/"out/failed.jsonl").exists()
    n = len(server.log)
    assert n - n // 5 == 32 and len(server.answered) == 32


def test_retry_after_is_honoured(world, whole, tmp_path):
    with Chat(fault=lambda i, asked: "429" if i == 3 else None, retry_after="1") as server: path = sweep(config(world, server.url, tmp_path/"out"))
    refused = next(a for a in server.log if a.fault)
    again = next(a for a in server.answered if (a.prompt, a.pixels) == (refused.prompt, refused.pixels))
    assert path.read_bytes() == whole and again.at - refused.at >= 1


def test_questions_are_asked_at_once(world, whole, tmp_path):
    "Four requests can only be answered together: each waits at a gate until there are four"
    with Chat() as server:
        server.gate = threading.Barrier(4, timeout=30)
        path = sweep(config(world, server.url, tmp_path/"out", concurrency=4, batch_size=1))
    assert server.peak == 4 and path.read_bytes() == whole


@pytest.mark.parametrize("n", [1, 3, 16])
def test_order_and_concurrency_do_not_matter(world, whole, tmp_path, n):
    with Chat(delay=lambda asked: (asked.n * 7 % 5) * .01) as server: path = sweep(config(world, server.url, tmp_path/"out", concurrency=n))
    assert server.peak <= n and len(server.log) == 32 and path.read_bytes() == whole


def flags_of(cfg): return [f"--{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in vars(cfg).items() if v != getattr(EvalConfig(), k) and not isinstance(v, bool)]


KILL = """
import os, signal
import r3nb.eval as ev
plain, n = ev.append_rows, [0]
def mortal(path, rows):
    plain(path, rows)
    n[0] += len(rows) * ("predictions" in str(path))
    if n[0] == {n}: os.kill(os.getpid(), signal.SIGKILL)
ev.append_rows = mortal
ev.main({flags!r})
"""


def kill_after(n, cfg):
    "Run the command until it has written n answers; how many are in its file"
    job = subprocess.run([sys.executable, "-c", KILL.format(n=n, flags=flags_of(cfg))], capture_output=True, text=True, timeout=120)
    assert job.returncode == -signal.SIGKILL, job.stderr
    assert not (Path(cfg.out_dir)/"predictions.jsonl").exists()
    return (Path(cfg.out_dir)/"predictions.partial.jsonl").read_bytes().count(b"\n")


@pytest.mark.slow
def test_killed_and_resumed(world, whole, tmp_path):
    "A kill loses what is under way; the second run asks for nothing that is there"
    with Chat(delay=.05) as server:
        cfg = config(world, server.url, tmp_path/"out", concurrency=2)
        kept = kill_after(10, cfg)
        time.sleep(.3) # until the server has seen all that was under way
        before, server.delay = len(server.log), 0
        assert kept == 10 and before <= 10 + 2 * 2
        assert sweep(cfg).read_bytes() == whole and len(server.log) - before == 32 - kept
        sweep(cfg)
        assert len(server.log) - before == 32 - kept # nothing is missing, nothing is asked


@pytest.mark.slow
def test_a_question_that_fails_for_good_costs_only_itself(world, whole, tmp_path):
    bad = {"demo_train_2", "demo_train_5"}
    names = {r.question: r.sample_id for r in world.records}
    hit = lambda i, asked: "long" if names[asked.prompt.split("Question: ")[1]] in bad and "Text:" in asked.prompt else None
    out = tmp_path/"out"
    with Chat(fault=hit) as server:
        cfg = config(world, server.url, out)
        job = subprocess.run([sys.executable, "-m", "r3nb.eval", *flags_of(cfg)], capture_output=True, text=True, timeout=120)
        error = job.stderr
        assert job.returncode == 2 and job.stdout == "" and "Traceback" not in error
        assert "4 questions have no answer" in error and all(s in error for s in bad) and "maximum context length" in error
        assert not any((out/n).exists() for n in ("predictions.jsonl", "corruption.jsonl", "summary.json"))
        listed = [r for _, r in read_jsonl(out/"failed.jsonl")]
        assert {(r["sample_id"], r["mode"], r["level"]) for r in listed} == {(s, "base+text", v) for s in bad for v in (0, .6)}
        assert all(r["reason"] == "status 400: This model's maximum context length is 1024 tokens." for r in listed)
        assert len(server.log) == 32 # status 400 is not tried again
        server.fault = None
        summary = evaluate(cfg)
    assert len(server.log) == 36 and (out/"predictions.jsonl").read_bytes() == whole and not (out/"failed.jsonl").exists()
    assert summary["n_predictions"] == 32


@pytest.mark.parametrize("kind, words", [("500", "status 500: made to fail"), ("empty", "no choices"), ("junk", "not JSON"), ("cut", "disconnected|reset"), ("slow", "no answer within 0.5 s"),
                                         ("stranger", "answered by 'somebody-else'")])
def test_what_never_succeeds_is_named(world, tmp_path, kind, words):
    "After all attempts a fault that passes is a fault that stays, with the sample's id"
    question = world.records[0].question # the shortest, so the last one that is asked
    with Chat(fault=lambda i, asked: kind if question in asked.prompt else None) as server:
        cfg = config(world, server.url, tmp_path/"out", eval_mode=["base"], clean_only=True, retries=2, concurrency=1, timeout=.5 if kind == "slow" else 30)
        with pytest.raises(EndpointError, match=f"1 questions(.|\n)*demo_train_0 .*({words})"): sweep(cfg)
        assert len(server.log) == 7 + 3
        server.fault = None
        assert len(rows_of(sweep(cfg).parent)) == 8 and len(server.log) == 11


@pytest.mark.parametrize("status, words", [("401", "OPENAI_API_KEY"), ("403", "OPENAI_API_KEY"), ("404", "--model_name")])
def test_a_refusal_stops_at_once(world, tmp_path, status, words):
    with Chat(fault=lambda i, asked: status) as server:
        with pytest.raises(EndpointError, match=words): sweep(config(world, server.url, tmp_path/"out", concurrency=3))
        assert len(server.log) <= 6
        server.fault = None
        assert len(rows_of(sweep(config(world, server.url, tmp_path/"out")).parent)) == 32


def test_an_unknown_model_and_a_wrong_path(world, tmp_path):
    with Chat() as server:
        with pytest.raises(EndpointError, match="does not know the address or the model 'large'"): sweep(config(world, server.url, tmp_path/"a", model_name="large"))
        with pytest.raises(EndpointError, match="check --endpoint"): sweep(config(world, server.url + "/api", tmp_path/"b"))


def test_the_key_comes_from_the_environment_alone(world, tmp_path, monkeypatch):
    with Chat(key="sesame") as server:
        cfg = config(world, server.url, tmp_path/"out", eval_mode=["base"], clean_only=True)
        with pytest.raises(EndpointError, match="refuses the key.*OPENAI_API_KEY"): sweep(cfg)
        assert not server.log
        monkeypatch.setenv("OPENAI_API_KEY", "sesame")
        evaluate(cfg)
    assert len(server.log) == 8 and not any(b"sesame" in p.read_bytes() for p in (tmp_path/"out").rglob("*") if p.is_file())


def test_nobody_there(world, tmp_path):
    with Chat() as server: cfg = config(world, server.url, tmp_path/"out")
    with pytest.raises(EndpointError, match="nobody answers at .*start the server"): sweep(cfg)


def test_a_server_that_is_down_is_given_up(world, tmp_path, monkeypatch):
    "Answers that came before are kept"
    monkeypatch.setattr("r3nb.endpoint.GIVE_UP", 5)
    with Chat(fault=lambda i, asked: "503" if i >= 6 else None) as server:
        cfg = config(world, server.url, tmp_path/"out", retries=1, concurrency=1)
        with pytest.raises(EndpointError, match="failed 5 questions in a row.*run again"): sweep(cfg)
        assert len(server.log) <= 6 + 2 * 5 + 2 and GIVE_UP == 32
        server.fault, n = None, len(server.log)
        sweep(cfg)
    assert len(server.log) - n == 32 - 6


def test_what_arrives_is_what_was_damaged(world, tmp_path):
    "The pixels of every picture and the settings of every request"
    with Chat() as server: sweep(config(world, server.url, tmp_path/"out"))
    cases = [c for level in (0, .6) for c in damage(world.records, "drawn", level, 0, EvalConfig(image_root=str(world.root)))]
    assert {a.pixels for a in server.log} == {c.seen.image.convert("RGB").tobytes() for c in cases}
    assert all(a.png.startswith(b"\x89PNG") and Image.open(io.BytesIO(a.png)).mode == "RGB" for a in server.log)
    assert {(a.body["temperature"], a.body["max_tokens"], a.body["model"], len(a.body["messages"])) for a in server.log} == {(0, 5, "tiny", 1)}
    assert {frozenset(a.body) for a in server.log} == {frozenset(("model", "messages", "temperature", "max_tokens"))}


def test_a_picture_too_thin_for_the_model_gets_the_margin_of_the_local_one(world, tmp_path):
    from r3nb.model import R3Model, fit_picture
    thin = Image.effect_noise((3000, 8), 90).convert("RGB")
    thin.save(tmp_path/"thin.png")
    write_jsonl(tmp_path/"val.jsonl", [replace(world.records[0], image_path="thin.png")])
    cfg = dict(val_jsonl=str(tmp_path/"val.jsonl"), eval_mode=["base"], clean_only=True)
    with Chat() as server:
        for name, tokenizer in (("whole", str(world.backbone)), ("pieces", "")): sweep(replace(config(world, server.url, tmp_path/name, **cfg), image_root=str(tmp_path), tokenizer=tokenizer))
    wide = fit_picture(thin, R3Model.from_pretrained(world.backbone).processor.manner)
    assert [a.pixels for a in server.log] == [wide.tobytes(), thin.tobytes()] and wide.size != thin.size


def test_empty_and_cut_answers_are_kept_and_counted(world, tmp_path):
    say = lambda asked: (None, "stop") if "Text:" not in asked.prompt and "Oslo" in asked.prompt else ("It is diffic", "length") if "Text:" in asked.prompt else ("100", "stop")
    with Chat(answer=say) as server: summary = evaluate(config(world, server.url, tmp_path/"out", clean_only=True, prompt_suffix=" Short."))
    assert summary["endpoint"]["answers"] == [{"mode": "base", "n": 8, "empty": 1, "cut": 0}, {"mode": "base+text", "n": 8, "empty": 0, "cut": 8}]
    assert summary["settings"]["max_new_tokens"] == 5 and summary["settings"]["prompt_suffix"] == " Short." and summary["settings"]["served"] and "dtype" not in summary["settings"]
    known = {"model": "tiny", "answered_as": "tiny", "temperature": 0, "max_tokens": 5, "images": "PNG", "budgets": COUNTED[None]}
    assert {k: summary["endpoint"][k] for k in known} == known
    assert read_json(tmp_path/"out/summary.json")["endpoint"] == summary["endpoint"]
    assert all(a.prompt.endswith(" Short.") for a in server.log) and server.url not in (tmp_path/"out/summary.json").read_text()


def test_strange_text_survives(world, tmp_path):
    odd = "\ud83d half 🙂 \u2028 a\nb \x00 é"
    with Chat(answer=lambda asked: f"  {odd} ") as server: rows = rows_of(sweep(config(world, server.url, tmp_path/"out", eval_mode=["base"], clean_only=True)).parent)
    assert {r["prediction"] for r in rows} == {odd.replace("\ud83d", "?")}


def test_the_name_is_asked_where_there_is_one(world, whole, tmp_path):
    with Chat() as server:
        cfg = config(world, server.url, tmp_path/"out", model_name="")
        evaluate(cfg)
        assert {a.body["model"] for a in server.log} == {"tiny"} and (tmp_path/"out/predictions.jsonl").read_bytes() == whole
        assert read_json(tmp_path/"out/manifest.json")["config"]["model_name"] == "tiny"
    with Chat(["large", "tiny"]) as server, pytest.raises(ConfigError, match=r"2 models \(large, tiny\).*--model_name"): sweep(replace(cfg, endpoint=server.url))
    with Chat([]) as server, pytest.raises(ConfigError, match="0 models"): sweep(replace(cfg, endpoint=server.url))


def test_another_model_starts_afresh_and_another_port_does_not(world, tmp_path):
    with Chat(["a"]) as one, Chat(["a"]) as two, Chat(["b"]) as other:
        cfg = config(world, one.url, tmp_path/"out", model_name="")
        sweep(cfg)
        sweep(replace(cfg, endpoint=two.url, concurrency=3, retries=1, timeout=9))
        assert not two.log
        with pytest.raises(ConfigError, match="model_name was .a., is .b."): sweep(replace(cfg, endpoint=other.url))
        sweep(replace(cfg, endpoint=other.url, overwrite=True))
        assert len(other.log) == 32
    local = replace(cfg, endpoint="", model_name="a")
    assert run_key(local) != run_key(replace(cfg, model_name="a"))


def test_a_model_exchanged_under_the_same_name_is_noticed(world, tmp_path, monkeypatch):
    "An alias stays the same, or its answers are not mixed with the earlier ones"
    monkeypatch.setattr("r3nb.endpoint.GIVE_UP", 4)
    with Chat() as server:
        server.said = "tiny-2026-01"
        cfg = config(world, server.url, tmp_path/"out", retries=0, eval_mode=["base"])
        sweep(cfg)
        server.said = "tiny-2026-07"
        with pytest.raises(EndpointError, match="answered by 'tiny-2026-07', but the answers of this run are by 'tiny-2026-01'"): sweep(replace(cfg, eval_mode=MODES))
        server.said = "tiny-2026-01"
        assert len(rows_of(sweep(replace(cfg, eval_mode=MODES)).parent)) == 32
    assert read_json(tmp_path/"out/endpoint.json")["answered_as"] == "tiny-2026-01"


def test_two_models_are_never_mixed(world, tmp_path):
    "If the first reply is the stranger's, the others are refused: no file holds answers of both"
    with Chat(fault=lambda i, asked: "stranger" if i == 0 else None) as server:
        cfg = config(world, server.url, tmp_path/"out", retries=1, concurrency=1, eval_mode=["base"], clean_only=True)
        with pytest.raises(EndpointError, match="7 questions(.|\n)*answered by 'tiny', but the answers of this run are by 'somebody-else'"): sweep(cfg)
    assert (tmp_path/"out/predictions.partial.jsonl").read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("change, words", [
    ({"eval_mode": ["base", "lora"]}, "eval_mode lora needs the weights"), ({"eval_mode": ["r3+shuffled"]}, "r3\\+shuffled needs the weights"), ({"workers": 2}, "--concurrency"),
    ({"ablation_mode": ["r3-gate"]}, "r3-gate needs the weights"), ({"concurrency": 0}, "concurrency is 0"), ({"retries": -1}, "retries is -1"), ({"timeout": 0}, "timeout is 0"),
    ({"endpoint": "127.0.0.1:80"}, "not a URL"), ({"endpoint": "ftp://host"}, "not a URL"), ({"endpoint": "http://h:port"}, "not a URL"), ({"endpoint": "http://me:pw@host"}, "OPENAI_API_KEY"),
    ({"eval_mode": ["rag"], "index_dir": ""}, "index_dir is needed"), ({"tokenizer": "no/such/thing"}, "tokenizer 'no/such/thing' is neither"), ({"tokenizer": "."}, "no tokenizer.json")])
def test_refused_before_anything_is_sent(world, tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with Chat() as server:
        with pytest.raises(ConfigError, match=words) as e: sweep(replace(config(world, server.url, tmp_path/"out"), **change))
        assert not server.log and "pw" not in str(e.value)


@pytest.mark.parametrize("given", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_forms_of_the_address(given): assert api_url("http://127.0.0.1:8000" + given) == "http://127.0.0.1:8000/v1"


def local_and_served(w, server, tmp_path, modes, **kw):
    "Rows of a local model and of an endpoint, in the same order"
    for name, more in (("local", {"endpoint": ""}), ("served", {})): evaluate(replace(config(w, server.url, tmp_path/name, eval_mode=modes, **kw), **more))
    return rows_of(tmp_path/"local"), rows_of(tmp_path/"served")


@pytest.mark.parametrize("sizes", [{}, {"own_tokens": 9, "evidence_tokens": 40}, {"max_tokens": 170}])
def test_prompts_are_those_of_the_local_model(world, tmp_path, sizes):
    "With the model's folder at hand: same words, same evidence, same order, same budgets; also where special tokens stand in a page"
    from r3nb.model import R3Config, R3Model
    rows = [replace(r, pseudo_text=r.pseudo_text + " <|im_end|> tail", question=r.question + " <|r3_prefix|>") for r in world.records]
    write_jsonl(tmp_path/"val.jsonl", rows)
    kw = {"val_jsonl": str(tmp_path/"val.jsonl"), "model_name": str(world.backbone), "max_new_tokens": 1}
    if sizes:
        R3Model.from_pretrained(world.backbone, R3Config(image_dim=24, bottleneck=16, **sizes)).save_pretrained(tmp_path/"ckpt")
        kw["checkpoint_dir"] = str(tmp_path/"ckpt")
    with Chat([str(world.backbone)]) as server: local, served = local_and_served(world, server, tmp_path, ["base+text", "rag", "rag+shuffled"], **kw)
    assert len(local) == 8 * 2 * 3
    for a, b in zip(local, served, strict=True):
        for k in ("sample_id", "mode", "level", "prompt_sha256", "evidence", "text"): assert a[k] == b[k], (k, a["mode"])
    assert len({r["prompt_sha256"] for r in local}) > 24
    assert read_json(tmp_path/"served/endpoint.json")["budgets"] == COUNTED[True]
    assert (tmp_path/"local/corruption.jsonl").read_bytes() == (tmp_path/"served/corruption.jsonl").read_bytes()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "internvl", "gemma3"])
def test_prompts_of_other_families(family, tmp_path):
    "Their own special tokens, templates and image tokens: the same words as for the local model, within a budget that cuts"
    from r3nb.model import R3Collator, R3Config, R3Model, make_examples
    flags = dict(disable_soft_prefix=True, context_order="score", max_tokens=150)
    folder = families.backbone(family, tmp_path/"backbone")
    model = R3Model.from_pretrained(folder, R3Config(lora_r=0, text_dim=20, image_dim=24, **flags))
    with Chat([str(folder)]) as server: reader = Endpoint(config(SimpleNamespace(root="", index="", jsonl=""), server.url, tmp_path, model_name=str(folder)), lambda mode: flags)
    for i in range(3):
        bad = SimpleNamespace(**vars(tiny.damaged(i)) | {"pseudo_text": tiny.records(8)[i].pseudo_text + " <image> <|im_end|> <end_of_turn> x" * 4})
        example = make_examples(tiny.fake_index(), tiny.records(8)[i:i + 1], [bad], model.r3, [tiny.found(i)], np.zeros((1, 24), np.float32))
        local = R3Collator(model.processor, model.r3)(example, None, answers=False)["meta"][0]["prompt"]
        assert reader.prompt(None, SimpleNamespace(record=tiny.records(8)[i], seen=bad), tiny.found(i))[0] == local
        assert len(local) < 400


def test_budgets_with_a_tokenizer_only_and_with_nothing(world, tmp_path):
    "A tokenizer cuts at the same words; pieces cut elsewhere, and both are recorded"
    prompts = {}
    (tmp_path/"tok").mkdir()
    for n in ("tokenizer.json", "tokenizer_config.json"): (tmp_path/"tok"/n).write_bytes((world.backbone/n).read_bytes())
    rows = [replace(r, pseudo_text=" ".join(f"{r.pseudo_text} item{i}" for i in range(60))) for r in world.records]
    write_jsonl(tmp_path/"val.jsonl", rows)
    for name, tokenizer in (("whole", str(world.backbone)), ("tokens", str(tmp_path/"tok")), ("pieces", "")):
        with Chat() as server: sweep(config(world, server.url, tmp_path/name, val_jsonl=str(tmp_path/"val.jsonl"), eval_mode=["base+text", "rag"], clean_only=True, tokenizer=tokenizer, own_tokens=256))
        prompts[name] = sorted(a.prompt for a in server.log)
        assert read_json(tmp_path/name/"endpoint.json")["budgets"] == COUNTED[{"whole": True, "tokens": False, "pieces": None}[name]]
    assert prompts["whole"] == prompts["tokens"] != prompts["pieces"]
    for p in prompts["pieces"]:
        own = re.search(r"^Text: (.*)$", p, re.M)[1]
        assert 240 < len(Pieces()(own)["offset_mapping"]) <= 256 # whole words


def test_no_weights_are_opened(world, tmp_path, monkeypatch):
    import transformers
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", lambda *a, **k: pytest.fail("a model was opened"))
    with Chat([str(world.backbone)]) as server: sweep(config(world, server.url, tmp_path/"out", eval_mode=["rag"], clean_only=True, model_name=str(world.backbone)))
    assert len(server.log) == 8


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    "Four pages of the small world and another page of each company as evidence: what the packaged backbone can read"
    from r3nb import mini as M
    from r3nb.indices import EvidenceIndex
    d, rows = tmp_path_factory.mktemp("mini"), {"train": [], "val": []}
    for i, e in enumerate(M.entities(4, 3)):
        for k, split in enumerate(rows):
            family, g, name = list(M.DRAW)[(i + k) % 3], rng("endpoint", i, split), f"{split}/{i}.png"
            doc = M.make_document(e, family, g)
            (d/"raw"/split).mkdir(parents=True, exist_ok=True)
            M.DRAW[family](doc, g).save(d/"raw"/name)
            text, asked = M.page_text(doc, g), [v for kind in M.questions(doc).values() for v in kind[:1]]
            rows[split] += [QARecord(f"mini_{split}_{i}_{j}", M.FAMILY[family], split, f"{split}/{i}", name, q, a, [a], text) for j, (q, a, _) in enumerate(asked)]
    write_jsonl(d/"val.jsonl", rows["val"])
    EvidenceIndex.build(rows["train"], d/"raw", d/"index", "minilm", str(M.clip_dir()))
    return SimpleNamespace(jsonl=d/"val.jsonl", root=d/"raw", index=d/"index", backbone=M.backbone_dir())


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "A real `transformers serve` of the packaged backbone, on a free port of the loopback address"
    from r3nb.mini import backbone_dir
    d = tmp_path_factory.mktemp("serve")
    (d/"hf/hub").mkdir(parents=True)
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    env = os.environ | {"HF_HOME": str(d/"hf"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(backbone_dir()), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with open(d/"log", "w") as log: job = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=d)
    try:
        end = time.monotonic() + 120
        while True:
            assert job.poll() is None and time.monotonic() < end, (d/"log").read_text()[-2000:]
            try: socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError: time.sleep(.2); continue
            break
        yield f"http://127.0.0.1:{port}"
    finally:
        job.terminate()
        try: job.wait(20)
        except subprocess.TimeoutExpired: job.kill(); job.wait()


def test_a_real_server_answers_as_the_local_model(mini, served, tmp_path):
    "transformers serve: same prompts, same pixels, same answers, in every mode, clean and damaged"
    server = SimpleNamespace(url=served)
    local, there = local_and_served(mini, server, tmp_path, ["base", "base+text", "rag"], model_name=str(mini.backbone), max_new_tokens=8, concurrency=4)
    assert len(local) == 12 * 3 * 2 and {r.pop("finish") for r in there} <= {"stop", "length"}
    assert there == local
    assert len({r["prediction"] for r in there}) > 10 and np.mean([r["scores"]["score"] for r in there if r["mode"] == "base+text" and r["level"] == 0]) > .6
    note = read_json(tmp_path/"served/summary.json")["endpoint"]
    assert note["model"] == str(mini.backbone) and note["answered_as"] == f"{mini.backbone}@main" and note["budgets"] == COUNTED[True]


def test_a_real_server_and_a_killed_run(mini, served, tmp_path):
    "The command itself: killed in the middle, started again, complete, and what was there is kept"
    cfg = config(mini, served, tmp_path/"out", model_name=str(mini.backbone), eval_mode=["base+text"], concurrency=3)
    assert kill_after(5, cfg) == 5
    kept = [json.loads(l) for l in (tmp_path/"out/predictions.partial.jsonl").read_bytes().splitlines()]
    assert evaluate(cfg)["n_predictions"] == 24
    rows = {(r["level"], r["sample_id"]): r for r in rows_of(tmp_path/"out")}
    assert len(rows) == 24 and all(rows[r["level"], r["sample_id"]] == r for r in kept)


def test_a_real_server_refuses_another_model(mini, served, tmp_path):
    "It is pinned to its model and says so with status 400: every question is listed with the reason"
    with pytest.raises(EndpointError, match="12 questions have no answer(.|\n)*status 400: Server is pinned to"):
        sweep(config(mini, served, tmp_path/"out", model_name="another", eval_mode=["base"], clean_only=True))
