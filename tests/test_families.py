"Any model: the four tests of soft tokens, training and evaluation on tiny random models of many families, and models that must be refused."
import json
import shutil
from dataclasses import replace

import families
import pytest
import tiny
import torch
from PIL import Image
from test_model import CONFIG, INDEX

from r3nb import model as m
from r3nb.core import ConfigError, ImageError, read_jsonl, write_jsonl
from r3nb.eval import EvalConfig, sweep
from r3nb.model import R3Collator, R3Config, R3Model, check_backbone, make_examples
from r3nb.train import TrainConfig, build_trainer

SIZES = ((96, 128), (150, 70), (64, 64), (40, 200))
TEXTS = {"gemma3": "<end_of_turn>", "idefics2": "<end_of_utterance>", "idefics3": "<end_of_utterance>", "smolvlm": "<end_of_utterance>", "llava": "</s>", "llava_next": "</s>",
         "mistral3": "</s>", "aya_vision": "<|END_OF_TURN_TOKEN|>", "paligemma": "<eos>"}  # what closes an answer, `<|im_end|>` elsewhere


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Backbones by name, written when first asked for."
    made, root = {}, tmp_path_factory.mktemp("families")
    def get(name):
        if name not in made: made[name] = families.backbone(name, root / name)
        return made[name]
    return get


@pytest.fixture(params=families.NAMES)
def name(request): return request.param


@pytest.fixture
def shaken(folders, name):
    "A model of the family whose soft tokens and LoRA really do something."
    torch.set_num_threads(1)
    model = R3Model.from_pretrained(folders(name), CONFIG)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad: p.add_(torch.randn_like(p) * .1)
    return model.eval()


def examples(ids=(0, 1, 5), config=CONFIG):
    "Examples with pictures of different sizes and texts of different lengths; nothing was found for the second."
    records = tiny.records()
    bad = [tiny.damaged(i, level) for i, level in zip(ids, (.5, .9, 0), strict=True)]
    for b, i in zip(bad, ids, strict=True): b.image = tiny.page(i, SIZES[i % 4])
    clean = [(tiny.page(i, SIZES[i % 4]), records[i].pseudo_text, records[i].question) for i in ids]
    rows = make_examples(INDEX, [records[i] for i in ids], bad, config, [tiny.found(i) for i in ids], INDEX.vectors("image")[list(ids)], clean)
    rows[1].pages, rows[1].scores, rows[1].vectors = [], rows[1].scores[:, :0], {}
    return rows


def logits(model, batch, **kwargs):
    with torch.no_grad(): return model({k: v for k, v in batch.items() if k != "labels"}, **kwargs).logits


def test_four_tests_of_soft_tokens(shaken, folders, name):
    from transformers import AutoModelForImageTextToText
    collator = R3Collator(shaken.processor, CONFIG)
    batch = collator(examples(), shaken)
    inputs, rows, seen = shaken.run_modules(batch, shaken.modules_)
    assert seen.open.tolist() == [True, False, True]

    # (a) the placeholders' own embedding in their places: the plain model's logits, bit for bit
    plain = AutoModelForImageTextToText.from_pretrained(folders(name)).eval()
    m.add_placeholders(plain, shaken.processor.tokenizer)
    want = plain(**shaken.ready(inputs)).logits
    own = [plain.get_input_embeddings()(torch.tensor(t)).expand(3, r.shape[1], -1) for t, r in zip(shaken.placeholder_ids, rows, strict=True)]
    assert torch.equal(shaken.check_logits(inputs, tuple(own)), want)
    assert not torch.equal(shaken.check_logits(inputs, rows), want)

    # (d) positions that the language model sees are the model's own, of the ids with placeholders and the mask with closed columns
    found = {}
    handle = shaken.base.get_decoder().register_forward_pre_hook(lambda _, a, k: found.update(k), with_kwargs=True)
    full = logits(shaken, batch)
    handle.remove()
    mask, base = inputs["attention_mask"], getattr(shaken.base, "model", None)
    if hasattr(base, "get_rope_index"):
        grid = {k: v for k, v in inputs.items() if k in ("image_grid_thw", "mm_token_type_ids")}
        assert torch.equal(found["position_ids"][-3:], base.get_rope_index(inputs["input_ids"], attention_mask=mask, **grid)[0])
    else: assert torch.equal(found["position_ids"], (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0) + (name == "paligemma"))  # PaliGemma counts from 1
    assert (mask[1] != batch["inputs"]["attention_mask"][1]).sum() == 4

    # (b) one forward pass over prompt and answer against generation with a cache
    assert shaken.check_steps(inputs, rows, collator) < 1e-5 * max(1, full.abs().max())

    # (c) a row of a left-padded batch against the row alone
    for i, row in enumerate(examples()):
        alone = collator([row], shaken)
        n = alone["inputs"]["input_ids"].shape[1]
        assert torch.equal(alone["inputs"]["input_ids"][0], batch["inputs"]["input_ids"][i, -n:])
        answer = alone["labels"][0] != -100
        assert (logits(shaken, alone)[0] - full[i, -n:])[answer].abs().max() < 1e-4
    assert batch["inputs"]["attention_mask"].sum(1).unique().numel() == 3


def test_closed_gate_equals_a_prompt_without_placeholders(shaken):
    off = replace(CONFIG, disable_text_retrieval=True, disable_image_retrieval=True, disable_latent_tokens=True)
    batch = R3Collator(shaken.processor, off)(examples(config=off))
    text = shaken.base.config.get_text_config()
    if getattr(text, "sliding_window", None): text.sliding_window = 4096  # closed columns take room in a window, so let it hold the prompt
    slots = torch.isin(batch["inputs"]["input_ids"], torch.tensor(shaken.placeholder_ids))
    assert slots.sum(1).tolist() == [4] * 3
    keep = {k: v[~slots].view(3, -1) for k, v in batch["inputs"].items() if k in (*shaken.processor.manner.per_token, "attention_mask")}
    bare = batch | {"inputs": batch["inputs"] | keep, "labels": batch["labels"][~slots].view(3, -1), "evidence": None}
    with torch.no_grad(): assert (shaken(batch).logits - shaken(bare).logits).abs().max() < 1e-4


def test_labels_and_answer_positions(shaken, name):
    "The supervised ids are the answer and what closes a turn; only their logits are computed, on whichever side the padding is."
    tok, end = shaken.processor.tokenizer, TEXTS.get(name, "<|im_end|>")
    outs = []
    for side in ("left", "right"):
        batch = R3Collator(shaken.processor, CONFIG, side)(examples(), shaken, teacher=True)
        for part in (batch, batch["teacher"]):
            said = [tok.decode(row[row != -100]) for row in part["labels"]]
            assert [s.strip() for s in said] == [f"{100 + i}{end}" for i in (0, 1, 5)]
            assert all(s.startswith(" ") == name.startswith("llava_next") or name == "llava" for s in said)
            assert all(len(v) == 3 for k, v in part["inputs"].items() if k in shaken.processor.manner.per_token)
        with torch.no_grad(): outs.append(shaken(batch))
        at = batch["labels"][:, 1:] != -100
        assert (logits(shaken, batch)[:, :-1][at] - outs[-1].logits).abs().max() < 1e-5
    assert (outs[0].logits - outs[1].logits).abs().max() < 1e-4
    assert tok(end, add_special_tokens=False)["input_ids"][0] in shaken.ends()
    ids = batch["inputs"]["input_ids"]
    assert tok.bos_token is None or (ids == tok.bos_token_id).sum(1).tolist() == [1, 1, 1]


def test_lora_is_in_the_language_model_only(shaken):
    layers = {n.split(".lora_")[0].removeprefix("base_model.model.") for n in shaken.lora_parameters()}
    root, inside = m.language_layers(shaken.base)
    assert root.split(".")[-1] in ("language_model", "text_model") and layers
    assert all(n.startswith(root + ".layers.") and n.rsplit(".", 1)[-1] in m.LORA_TARGETS for n in layers)
    assert not any(w in n for n in layers for w in ("vision", "visual", "projector", "connector", "merger", "lm_head"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Sixteen pages of four sizes with an index; nine are asked about."
    folder = tmp_path_factory.mktemp("world")
    w = tiny.world(folder, 16, SIZES)
    write_jsonl(folder / "val.jsonl", [r.to_dict() for r in w.records[:9]])
    w.val = folder / "val.jsonl"
    return w


def training(world, backbone, out, **kw):
    return TrainConfig(**dict(model_name=str(backbone), train_jsonl=str(world.jsonl), image_root=str(world.root), index_dir=str(world.index), output_dir=str(out), max_steps=2,
                              batch_size=3, warmup_steps=1, save_every=2, log_every=1, num_workers=0, bottleneck=16, heads=2, n_prefix=2, n_memory=2, n_latent=1, top_k=2,
                              lr=1e-2, module_lr=1e-2, lr_warmup_steps=1, threads=1) | kw)


def evaluation(world, backbone, out, **kw):
    return EvalConfig(**dict(model_name=str(backbone), val_jsonl=str(world.val), image_root=str(world.root), index_dir=str(world.index), out_dir=str(out),
                             eval_mode=["base", "base+text", "rag", "r3"], corruption_levels=[.6], max_new_tokens=2, n_boot=20, threads=1) | kw)


def test_train_and_evaluate(world, folders, name, tmp_path):
    "A few steps move LoRA and modules and nothing else; the answers do not depend on the batch size."
    trainer = build_trainer(training(world, folders(name), tmp_path / "run"))
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    assert all(torch.isfinite(torch.tensor(r["loss"])) for r in map(json.loads, open(tmp_path / "run/history.jsonl")))
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    free = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert moved and {n for n in free if n.startswith("modules_") or "lora_B" in n} & moved and not {n for n in moved if "teacher" not in n} - free
    assert {n.split(".")[0] for n in moved & free} == {"modules_", "backbone"}

    said = []
    for n in (1, 3, 16):
        path = sweep(evaluation(world, folders(name), tmp_path / str(n), checkpoint_dir=str(tmp_path / "run/checkpoints/step_2"), batch_size=n))
        said.append([(r["mode"], r["sample_id"], r["prediction"], r["prompt_sha256"]) for _, r in read_jsonl(path)])
    assert said[0] == said[1] == said[2] and len(said[0]) == 4 * 9
    assert len({p for *_, p, _ in said[0]}) > 1


def test_family_passes_its_own_check(folders, name):
    assert name in m.TESTED_FAMILIES
    got = check_backbone(R3Model.from_pretrained(folders(name), R3Config(lora_r=0)))
    assert got["own rows"] == 0 and min(got["other rows"], got["other picture"]) > 1e-4 and max(got["in a batch"], got["step by step"]) < 1e-5


def test_half_precision(folders, name):
    "Pixels are cast to the backbone's precision, trainable weights stay in 32 bits, and the check holds as far as bfloat16 can tell."
    model = R3Model.from_pretrained(folders(name), CONFIG, dtype="bfloat16")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    with torch.no_grad(): out = model(R3Collator(model.processor, CONFIG)(examples(), model))
    assert out.logits.isfinite().all() and check_backbone(model)["own rows"] == 0


@pytest.mark.parametrize("name", sorted(set(families.UNLISTED) - {"kosmos2"}))
def test_a_family_that_nobody_listed_is_checked_and_works(folders, name):
    model = R3Model.from_pretrained(folders(name), CONFIG)
    assert name not in m.TESTED_FAMILIES and model.slim == (name not in ("chameleon", "blip_2")) and model.processor.manner.nested == (name != "got_ocr2")
    root, layers = m.language_layers(model.base)
    assert not any(w in n for n in model.lora_parameters() for w in ("vision", "visual", "vq", "qformer", "projector"))
    collator = R3Collator(model.processor, CONFIG)
    batch = collator(examples(), model)
    out = model(batch)
    torch.nn.functional.cross_entropy(out.logits, out.targets).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in model.lora_parameters().items() if "lora_B" in n and "cross_attn" not in n)
    assert (logits(model, batch)[:, :-1][batch["labels"][:, 1:] != -100] - out.logits).abs().max() < 1e-5
    said = model.generate(collator(examples(), model, answers=False), 3)
    assert [model.generate(collator([e], model, answers=False), 3).ids[0] for e in examples()] == said.ids
    rows = examples()
    rows[0].corrupted.image = Image.new("RGB", (20_000, 60), "navy")
    with torch.no_grad(): assert model(collator(rows, model)).logits.isfinite().all()


def test_a_processor_that_repeats_placeholders_is_refused(folders):
    with pytest.raises(ConfigError, match="turns 2 placeholders of each kind into"): R3Model.from_pretrained(folders("kosmos2"), CONFIG)


def test_command_line(folders, capsys):
    m.main(["--model_name", str(folders("gemma3"))])
    out = capsys.readouterr().out
    assert "can be used" in out and "'<end_of_turn>'" in out and "14 layers of model.language_model: down_proj" in out
    with pytest.raises(SystemExit): m.main(["--model_name", str(folders("kosmos2"))])
    assert "cannot be used: its processor" in capsys.readouterr().err


def test_tested_families_are_those_of_this_file(): assert set(m.TESTED_FAMILIES) == set(families.NAMES)


# pictures ------------------------------------------------------------------------------------------------------------------------------

ODD = ((20_000, 60), (60, 20_000), (1, 1), (20_000, 1), (3, 900), (1, 3))


def test_odd_pictures_have_finite_logits(folders, name):
    model = R3Model.from_pretrained(folders(name), CONFIG)
    for size in ODD:
        rows = examples()
        rows[0].corrupted.image = Image.new("RGB", size, "navy")
        batch = R3Collator(model.processor, CONFIG)(rows, model)
        with torch.no_grad(): assert model(batch).logits.isfinite().all()


@pytest.mark.parametrize("name", ["qwen3_vl", "llava_next"])
def test_odd_pictures_in_training_and_evaluation(world, folders, name, tmp_path):
    root = tmp_path / "raw"
    shutil.copytree(world.root, root)
    for i, size in enumerate(ODD): Image.new("RGB", size, (200, 60, 40)).save(root / f"demo/{i}.png")
    odd = replace_root(world, root, tmp_path, len(ODD))
    trainer = build_trainer(training(odd, folders(name), tmp_path / "run"))
    trainer.train()
    said = [[r["prediction"] for _, r in read_jsonl(sweep(evaluation(odd, folders(name), tmp_path / str(n), batch_size=n, checkpoint_dir=str(tmp_path / "run/checkpoints/step_2"))))]
            for n in (1, 6)]
    assert said[0] == said[1] and len(said[0]) == 4 * len(ODD)


def replace_root(world, root, folder, n):
    "The world's first n records over other pictures; its index stays."
    write_jsonl(folder / "odd.jsonl", [r.to_dict() for r in world.records[:n]])
    return type(world)(**vars(world) | {"root": root, "jsonl": folder / "odd.jsonl", "val": folder / "odd.jsonl"})


def test_ordinary_pictures_are_not_touched(folders):
    for size in ((640, 480), (1900, 10), (8, 8)):
        im = Image.new("RGB", size)
        assert m.fit_picture(im, m.Manner(ratio=190)) is im


def test_padding_keeps_every_pixel():
    im = Image.effect_noise((900, 3), 80).convert("RGB")
    out = m.fit_picture(im, m.Manner(ratio=50))
    assert out.size == (900, 18) and out.crop((0, 0, 900, 3)).tobytes() == im.tobytes() and out.getpixel((5, 10)) == (255, 255, 255)


def test_a_refused_picture_names_its_sample(folders, monkeypatch):
    model = R3Model.from_pretrained(folders("qwen3_vl"), CONFIG)
    images = type(model.processor.image_processor)
    original = images.preprocess
    def narrow(self, pictures, *a, **k):
        flat = [im for group in pictures for im in (group if isinstance(group, list) else [group])]
        if any(im.size == (150, 70) for im in flat): raise ValueError("too wide for me")
        return original(self, pictures, *a, **k)
    monkeypatch.setattr(images, "preprocess", narrow)
    with pytest.raises(ImageError, match="sample demo_train_1: the processor refuses its picture demo/1.png of 150 x 70.*too wide"):
        R3Collator(model.processor, CONFIG)(examples())


# refusals ------------------------------------------------------------------------------------------------------------------------------

def edit(folder, to, change):
    "A copy of a backbone's folder with a changed processor."
    from transformers import AutoProcessor
    shutil.copytree(folder, to)
    processor = AutoProcessor.from_pretrained(folder)
    change(processor)
    (to / "chat_template.jinja").unlink(missing_ok=True)
    processor.save_pretrained(to)
    return to


@pytest.mark.parametrize("template, words", [
    (None, "no chat template"), ("{{ 'hello' }}", "leaves the question out"), ("{% for m in messages %}{{ m.content[1].text }}{% endfor %}", "does not take a question with a picture"),
    ("{{ raise_exception('no pictures here') }}", "no pictures here"),
    ("{% for m in messages %}<|image_pad|>{{ m.content[1].text | replace('<|r3_latent|>', '') }}{% endfor %}", "placeholders of each kind into")])
def test_templates_that_cannot_work(folders, tmp_path, template, words):
    place = edit(folders("qwen3_vl"), tmp_path / "b", lambda p: [setattr(x, "chat_template", template) for x in (p, p.tokenizer)])
    with pytest.raises(ConfigError, match=f"backbone '.*b' cannot be used: .*{words}"): R3Model.from_pretrained(place, CONFIG)


def test_a_template_of_the_tokenizer_will_do():
    processor = tiny.processor()
    processor.tokenizer.chat_template, processor.chat_template = processor.chat_template, None
    assert R3Collator(processor, replace(CONFIG, disable_soft_prefix=True))(examples())["labels"].shape[0] == 3


def test_encoder_decoders_are_refused(tmp_path):
    from transformers import Pix2StructConfig, Pix2StructForConditionalGeneration
    small = dict(hidden_size=16, d_kv=8, d_ff=16, num_hidden_layers=1, num_layers=1, num_heads=2, num_attention_heads=2)
    Pix2StructForConditionalGeneration(Pix2StructConfig(text_config=small | {"vocab_size": 300}, vision_config=small)).save_pretrained(tmp_path / "b")
    with pytest.raises(ConfigError, match="encoder-decoder"): R3Model.from_pretrained(tmp_path / "b", CONFIG)


def test_text_models_and_remote_code_are_refused(folders, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM
    Qwen2ForCausalLM(Qwen2Config(vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)).save_pretrained(tmp_path / "a")
    with pytest.raises(ConfigError, match="cannot be used: transformers does not open it as AutoModelForImageTextToText"): R3Model.from_pretrained(tmp_path / "a", CONFIG)
    shutil.copytree(folders("qwen3_vl"), tmp_path / "b")
    config = json.loads((tmp_path / "b/config.json").read_text())
    config |= {"model_type": "my_own", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForImageTextToText": "mine.Model"}}
    (tmp_path / "b/config.json").write_text(json.dumps(config))
    (tmp_path / "b/mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match="without remote code"): R3Model.from_pretrained(tmp_path / "b", CONFIG)
    assert not (tmp_path / "ran").exists()


def test_a_backbone_that_hides_its_ids_is_refused(folders, monkeypatch):
    "Placeholders replaced before the embedding, soft tokens without effect, padding that leaks: each is found and named."
    from transformers import Qwen3VLForConditionalGeneration as Qwen
    monkeypatch.setattr(m, "TESTED_FAMILIES", ())
    original = Qwen.forward
    def hiding(self, input_ids=None, **k): return original(self, input_ids=input_ids.masked_fill(input_ids > 262, 0), **k)
    def leaking(self, input_ids=None, attention_mask=None, **k): return original(self, input_ids=input_ids, attention_mask=torch.ones_like(attention_mask), **k)
    def forgetful(self, input_ids=None, past_key_values=None, **k):
        out = original(self, input_ids=input_ids, past_key_values=past_key_values, **k)
        if input_ids.shape[1] == 1: out.logits = out.logits + 1
        return out
    for wrong, words in ((hiding, "did not look the placeholders up"), (leaking, "in a batch"), (forgetful, "step by step")):
        wrong.__signature__ = __import__("inspect").signature(original)
        monkeypatch.setattr(Qwen, "forward", wrong)
        with pytest.raises(ConfigError, match=words): R3Model.from_pretrained(folders("qwen3_vl"), CONFIG)


def test_lora_targets_that_do_not_exist(folders):
    with pytest.raises(ConfigError, match="no linear layer 'q_porj'.*did you mean 'q_proj'.*known: down_proj"):
        R3Model.from_pretrained(folders("gemma3"), replace(CONFIG, lora_targets=["q_porj", "v_proj"]))
    model = R3Model.from_pretrained(folders("glm4v"), replace(CONFIG, lora_targets=["gate_up_proj"]))
    assert {n.split(".")[-3] for n in model.lora_parameters()} == {"gate_up_proj"}


def test_other_layer_names_get_lora_by_themselves():
    from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM
    opt = OPTForCausalLM(OPTConfig(vocab_size=50, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16))
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vision, self.words = torch.nn.Linear(4, 4), torch.nn.Module()
            self.words.table, self.words.inner, self.head = torch.nn.Embedding(9, 4), torch.nn.ModuleList([torch.nn.Linear(4, 4)]), torch.nn.Linear(4, 9)
        def get_input_embeddings(self): return self.words.table
        def get_output_embeddings(self): return self.head
    import re
    assert [n for n, _ in Odd().named_modules() if re.fullmatch(m.lora_pattern(Odd(), m.LORA_TARGETS), n)] == ["words.inner.0"]
    assert m.language_layers(opt)[0] == "model.decoder" and "q_proj" in m.lora_pattern(opt, m.LORA_TARGETS)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ConfigError, match="no linear layers"): m.lora_pattern(gpt, m.LORA_TARGETS)
