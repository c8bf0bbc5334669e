"Mechanism of the model: soft tokens, labels, budgets, roles, saving."
import copy
import json
from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from r3nb.core import CheckpointError, ConfigError, DataError
from r3nb.model import LORA_TARGETS, PLACEHOLDERS, R3Collator, R3Config, R3Model, add_placeholders, build_prompt, make_examples, supports

CONFIG = R3Config(text_dim=20, image_dim=24, bottleneck=16, heads=2, n_prefix=2, n_memory=2, n_latent=1, top_k=2)
INDEX = tiny.fake_index()


def examples(ids=(0, 1, 5), config=CONFIG, level=.5):
    records = tiny.records()
    clean = [(tiny.page(i), records[i].pseudo_text, records[i].question) for i in ids]
    return make_examples(INDEX, [records[i] for i in ids], [tiny.damaged(i, level) for i in ids], config, [tiny.found(i) for i in ids],
                         INDEX.vectors("image")[list(ids)], clean)


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tiny.backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def shaken(folder):
    "A model whose soft tokens and LoRA really do something."
    model = R3Model.from_pretrained(folder, CONFIG)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad: p.add_(torch.randn_like(p) * .1)
    return model.eval()


def logits(model, batch, **kwargs):
    with torch.no_grad(): return model({k: v for k, v in batch.items() if k != "labels"}, **kwargs).logits


# the four tests of soft tokens ---------------------------------------------------------------------------------------------------------

def test_neutral_tokens_equal_the_plain_model(folder):
    "(a) Soft tokens set to the placeholder's own embedding: logits equal the plain model's, bit for bit."
    from transformers import AutoModelForImageTextToText
    model = R3Model.from_pretrained(folder, CONFIG)
    plain = AutoModelForImageTextToText.from_pretrained(folder).eval()
    batch = R3Collator(model.processor, CONFIG)(examples())
    with torch.no_grad(): plain.get_input_embeddings().weight[list(model.placeholder_ids)] = model.neutral
    with torch.no_grad(): want = plain(**batch["inputs"]).logits
    assert torch.equal(logits(model, batch), want)


def test_forward_equals_cached_generation(shaken):
    "(b) Teacher-forced logits equal those of step-by-step generation with cache."
    collator = R3Collator(shaken.processor, CONFIG)
    batch = collator(examples(), answers=False)
    inputs, rows, _ = shaken.run_modules(batch, shaken.modules_)
    with torch.no_grad(), shaken.soft.use(rows):
        out = shaken.backbone.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True,
                                       pad_token_id=0)
    new, n = out.sequences[:, -5:], inputs["input_ids"].shape[1]
    longer = {"input_ids": out.sequences, "attention_mask": torch.cat([batch["inputs"]["attention_mask"], torch.ones_like(new)], 1),
              "mm_token_type_ids": torch.cat([batch["inputs"]["mm_token_type_ids"], torch.zeros_like(new)], 1)}
    forced = logits(shaken, batch | {"inputs": batch["inputs"] | longer})[:, n - 1:-1]
    assert (torch.stack(out.logits, 1) - forced).abs().max() < 1e-5 * max(1, forced.abs().max())


def test_row_of_a_padded_batch_equals_the_row_alone(shaken):
    "(c) A row of a left-padded batch equals the row alone."
    collator = R3Collator(shaken.processor, replace(CONFIG, evidence_tokens=40))
    rows = examples((0, 3, 5), level=.5)
    rows[1].corrupted.pseudo_text = "x"
    rows[2].pages, rows[2].scores = [], rows[2].scores[:, :0]
    together = collator(rows, shaken)
    full = logits(shaken, together)
    assert together["inputs"]["attention_mask"].sum(1).unique().numel() > 1
    for i, row in enumerate(rows):
        alone = collator([row], shaken)
        n = alone["inputs"]["input_ids"].shape[1]
        assert torch.equal(alone["inputs"]["input_ids"][0], together["inputs"]["input_ids"][i, -n:])
        answers = alone["labels"][0] != -100
        assert (logits(shaken, alone)[0][answers] - full[i, -n:][answers]).abs().max() < 1e-4


def test_positions_are_those_of_get_rope_index(shaken):
    "(d) The positions that the language model sees are get_rope_index's of the ids with placeholders, for open and closed gates."
    rows = examples()
    rows[1].pages, rows[1].scores = [], rows[1].scores[:, :0]
    batch = R3Collator(shaken.processor, CONFIG)(rows)
    seen = {}
    language = shaken.base.model.language_model
    handle = language.register_forward_pre_hook(lambda m, a, k: seen.update(k), with_kwargs=True)
    inputs, _, _ = shaken.run_modules(batch, shaken.modules_)
    logits(shaken, batch)
    handle.remove()
    want, _ = shaken.base.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"],
                                               attention_mask=inputs["attention_mask"])
    assert torch.equal(seen["position_ids"][-3:], want)
    assert want.max(0).values.shape == inputs["input_ids"].shape and (want[0] != want[1]).any()  # really three-dimensional
    assert (inputs["attention_mask"] != batch["inputs"]["attention_mask"]).sum() == 4  # the closed row's prefix and memory columns


# soft tokens ---------------------------------------------------------------------------------------------------------------------------

def test_soft_tokens_matter_and_state_is_cleared(shaken):
    batch = R3Collator(shaken.processor, CONFIG)(examples())
    first = logits(shaken, batch)
    other = batch | {"evidence": batch["evidence"] | {"image": batch["evidence"]["image"] * -1}}
    assert (logits(shaken, other) - first).abs().max() > 1e-3
    assert shaken.soft.rows is None
    with pytest.raises(DataError, match="placeholders"): logits(shaken, batch | {"evidence": {k: v[:2] for k, v in batch["evidence"].items()}})
    assert shaken.soft.rows is None and torch.equal(logits(shaken, batch), first)
    with pytest.raises(DataError, match="no evidence tensors"): logits(shaken, {k: v for k, v in batch.items() if k != "evidence"})


def test_closed_gate_equals_a_prompt_without_placeholders(shaken):
    off = replace(CONFIG, disable_text_retrieval=True, disable_image_retrieval=True, disable_latent_tokens=True)
    rows = examples(config=off)
    assert all(not e.pages for e in rows)
    with_slots, without = (R3Collator(shaken.processor, c)(rows) for c in (off, replace(off, disable_soft_prefix=True)))
    a, b = logits(shaken, with_slots), logits(shaken, without)
    pick = lambda out, batch: out[batch["labels"] != -100]
    assert (pick(a, with_slots) - pick(b, without)).abs().max() < 1e-4


def test_base_role_equals_the_plain_model(shaken, folder):
    from transformers import AutoModelForImageTextToText
    plain = AutoModelForImageTextToText.from_pretrained(folder).eval()
    bare = replace(CONFIG, disable_soft_prefix=True)
    batch = R3Collator(shaken.processor, bare)(examples(), answers=False)
    with torch.no_grad(): want = plain(**batch["inputs"]).logits
    assert torch.equal(logits(shaken, batch, role="base"), want)
    ids = plain.generate(**batch["inputs"], max_new_tokens=4, do_sample=False, suppress_tokens=list(shaken.placeholder_ids))
    texts = shaken.processor.tokenizer.batch_decode(ids[:, batch["inputs"]["input_ids"].shape[1]:], skip_special_tokens=True)
    assert shaken.generate(batch, 4, role="base").texts == [t.strip() for t in texts]


@pytest.mark.parametrize("spare,tie", [(0, False), (0, True), (1, False), (64, True)])
def test_placeholders_with_and_without_spare_rows(tmp_path, spare, tie):
    model = R3Model.from_pretrained(tiny.backbone(tmp_path, spare, tie=tie), CONFIG)
    rows = model.get_input_embeddings().weight.shape[0]
    assert max(model.placeholder_ids) < rows and len(set(model.placeholder_ids)) == 3
    assert model.get_output_embeddings().weight.shape[0] == rows
    assert add_placeholders(model.base, model.processor.tokenizer) == model.placeholder_ids
    batch = R3Collator(model.processor, CONFIG)(examples(), answers=False)
    assert not set(model.placeholder_ids) & {t for r in model.generate(batch, 4).ids for t in r}


@pytest.mark.parametrize("flag", [f for f in R3Config.__dataclass_fields__ if f.startswith("disable_")])
def test_every_flag_runs(shaken, flag):
    config = replace(CONFIG, **{flag: True})
    saved, shaken.r3 = shaken.r3, config
    try:
        batch = R3Collator(shaken.processor, config)(examples(config=config), shaken)
        assert logits(shaken, batch).isfinite().all()
        prompt = batch["meta"][0]["prompt"]
        kinds = [p in prompt for p in PLACEHOLDERS]
        assert kinds == [n > 0 for n in config.n_soft]
        assert ("Evidence: " in prompt) == (flag != "disable_context") and ("Text: " in prompt) == (flag != "disable_pseudo_text")
    finally: shaken.r3 = saved


def test_disabled_gate_is_uniform_and_confidence_choices(shaken):
    batch = R3Collator(shaken.processor, CONFIG)(examples())
    e = batch["evidence"]
    run = lambda **kw: shaken.modules_(e, replace(CONFIG, **kw), shaken.neutral, shaken.scale)
    assert torch.allclose(run(disable_gate=True).gates, torch.full((3, 3), 1 / 3))
    assert torch.equal(run(confidence="oracle").confidence, e["true_conf"]) and (run(confidence="fixed").confidence == .5).all()
    assert not torch.equal(run().confidence, e["true_conf"])


@pytest.mark.parametrize("order", ["gate", "score"])
def test_evidence_is_left_out_where_the_page_seems_whole(shaken, order):
    "A sample that is trusted gets the prompt and the logits of one for which nothing was found; its neighbour keeps its evidence."
    config = replace(CONFIG, confidence="oracle", trust=.7, context_order=order)
    rows = examples((0, 1))
    for e, c_text in zip(rows, (.9, .5), strict=True): e.corrupted.c_vis, e.corrupted.c_text = .8, c_text
    bare = examples((0, 1))
    for e, o in zip(bare, rows, strict=True): e.corrupted.c_vis, e.corrupted.c_text = o.corrupted.c_vis, o.corrupted.c_text
    bare[0].pages, bare[0].scores, bare[0].vectors = [], bare[0].scores[:, :0], {}
    saved, shaken.r3 = shaken.r3, config
    try:
        batch, want = (R3Collator(shaken.processor, config)(x, shaken) for x in (rows, bare))
        assert ["Evidence: " in m["prompt"] for m in batch["meta"]] == [False, True] and batch["meta"][0]["evidence"] == []
        assert [m["prompt"] for m in batch["meta"]] == [m["prompt"] for m in want["meta"]]
        for k in ("signals", "score_text", "score_image"): want["evidence"][k] = batch["evidence"][k]  # what was found stays observable
        inputs, _, seen = shaken.run_modules(batch, shaken.modules_)
        assert seen.open.tolist() == [False, True] and seen.gates[0].tolist() == [0, 0, 1]
        assert torch.allclose(logits(shaken, batch), logits(shaken, want), atol=1e-5)
        shaken.r3 = replace(config, disable_selection=True)
        batch = R3Collator(shaken.processor, shaken.r3)(rows, shaken)
        assert all("Evidence: " in m["prompt"] for m in batch["meta"]) and shaken.run_modules(batch, shaken.modules_)[2].open.all()
    finally: shaken.r3 = saved


@pytest.mark.parametrize("value", [-.1, 1.5])
def test_trust_is_a_share(value):
    with pytest.raises(ConfigError, match="trust"): R3Config(trust=value)


@pytest.mark.parametrize("order", ["gate", "score"])
@pytest.mark.parametrize("flag", [False, True])
def test_pages_that_seem_to_say_nothing_are_left_out(shaken, order, flag):
    "A filtered page is neither quoted nor read by the soft tokens, the same in a batch and alone; with the flag every page is kept."
    config = replace(CONFIG, trust=1, keep=.5, context_order=order, disable_relevance=flag)
    rows, saved = examples((0, 1, 5)), shaken.r3
    logits_of = lambda e: shaken.modules_(e, config, shaken.neutral, shaken.scale).relevance_logits
    e = R3Collator(shaken.processor, config).evidence(rows)
    real = e["in_text"] | e["in_image"]
    bias, best = shaken.modules_.relevance.net[2].bias, logits_of(e)[real].detach()
    before = bias.detach().clone()
    assert best.max() > best.min()
    try:
        with torch.no_grad(): bias -= (best.max() + best.min()) / 2  # some pages on each side of the threshold
        kept = (logits_of(e) >= 0) & real
        assert kept.any() and (real & ~kept).any()
        wanted, shaken.r3 = real if flag else kept, config
        collator = R3Collator(shaken.processor, config)
        batch = collator(rows, shaken)
        assert torch.equal(shaken.run_modules(batch, shaken.modules_)[2].weights > 0, wanted)
        for row, m, k in zip(rows, batch["meta"], wanted, strict=True):
            assert {p["image_id"] for p in m["evidence"]} == {p.image_id for p, keep in zip(row.pages, k, strict=False) if keep}
        for i, row in enumerate(rows):  # alone as in the batch
            alone = collator([row], shaken)
            assert alone["meta"][0]["prompt"] == batch["meta"][i]["prompt"]
        if flag: return
        found = {f"in_{c}": e[f"in_{c}"] & kept for c in ("text", "image")}  # filtered pages read as pages that were not found
        run = lambda evidence: shaken.modules_(evidence, config, shaken.neutral, shaken.scale)
        assert all(torch.equal(x, y) for x, y in zip(run(e).tokens, run(e | found).tokens, strict=True))
        assert not torch.equal(run(e).tokens[0], shaken.modules_(e, replace(config, keep=0), shaken.neutral, shaken.scale).tokens[0])
    finally:
        shaken.r3 = saved
        with torch.no_grad(): bias.copy_(before)


@pytest.mark.parametrize("value", [-.1, 1])
def test_keep_is_a_share(value):
    with pytest.raises(ConfigError, match="keep"): R3Config(keep=value)


def test_a_checkpoint_without_the_head_is_refused(shaken, tmp_path):
    "An older checkpoint names the tensors that it lacks."
    folder = shaken.save_pretrained(tmp_path/"old")
    tensors = {k: v for k, v in load_file(folder/"modules.safetensors").items() if not k.startswith("relevance.")}
    save_file(tensors, folder/"modules.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="relevance"): shaken.load_weights(folder)


def test_patch_states_are_accepted_as_evidence(shaken):
    "A page may bring a set of image vectors; equal vectors in a set equal the single vector."
    e = R3Collator(shaken.processor, CONFIG).evidence(examples())
    memory, w = shaken.modules_.memory, torch.rand(3, 3)
    assert torch.allclose(memory(e["image"], w), memory(e["image"][:, :, None].expand(-1, -1, 5, -1), w), atol=1e-5)


# prompts and labels --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("n", [1, 3])
def test_labels_cover_answer_and_end_only(shaken, side, n):
    rows = examples((0, 3, 5)[:n])
    rows[0].record.answer = "a longer answer, 12.5%"
    batch = R3Collator(shaken.processor, CONFIG, side)(rows, teacher=True)
    for part in (batch, batch["teacher"]):
        for row, ids, mask, e in zip(part["labels"], part["inputs"]["input_ids"], part["inputs"]["attention_mask"], rows, strict=True):
            kept = row != -100
            assert shaken.processor.tokenizer.decode(row[kept]) == e.record.answer + "<|im_end|>"
            assert torch.equal(ids[kept], row[kept]) and mask[kept].all()
            assert (ids[mask == 0] == shaken.processor.tokenizer.pad_token_id).all()


def test_padding_side_does_not_change_the_logits(shaken):
    rows = examples((0, 3, 5))
    outs = []
    for side in ("left", "right"):
        with torch.no_grad(): outs.append(shaken(R3Collator(shaken.processor, CONFIG, side)(rows)))
    assert torch.equal(outs[0].targets, outs[1].targets) and (outs[0].logits - outs[1].logits).abs().max() < 1e-4


def test_own_text_never_starves_evidence(shaken):
    rows = examples((0,))
    rows[0].corrupted.pseudo_text = "word " * 2000
    prompt = R3Collator(shaken.processor, CONFIG)(rows)["meta"][0]["prompt"]
    assert prompt.count("Evidence: ") == 3 and len(prompt) < 2000


def test_image_tokens_are_never_cut(shaken):
    rows = examples((0, 1))
    rows[0].corrupted.pseudo_text = "word " * 50
    full = R3Collator(shaken.processor, CONFIG)(rows)
    small = R3Collator(shaken.processor, replace(CONFIG, max_tokens=130))(rows)
    image = shaken.processor.image_token_id
    count = lambda b: (b["inputs"]["input_ids"] == image).sum(1).tolist()
    assert count(full) == count(small) and small["inputs"]["attention_mask"].sum(1).max() <= 130
    assert small["meta"][0]["prompt"].endswith("Question: What is the total of Oslo?")
    with pytest.raises(DataError, match="demo_train_0.*raise max_tokens"): R3Collator(shaken.processor, replace(CONFIG, max_tokens=30))(rows)


def test_special_tokens_in_texts_are_inert(shaken):
    rows = examples((0, 1))
    rows[0].corrupted.pseudo_text = "a <|image_pad|><|r3_prefix|> b <|im_end|>"
    rows[0].corrupted.question = "what <|vision_start|><|image_pad|>?"
    batch = R3Collator(shaken.processor, CONFIG)(rows)
    assert "Text: a b" in batch["meta"][0]["prompt"] and "Question: what ?" in batch["meta"][0]["prompt"]
    assert logits(shaken, batch).isfinite().all()


def test_prompt_without_anything_is_the_question():
    assert build_prompt(" Why \n so? ") == "Question: Why so?"
    assert "\n\n" not in build_prompt("q", "a\n\nb", ["", "c"])


@pytest.mark.parametrize("text,answers,want", [("Calories424", ["424"], True), ("14240", ["424"], False), ("reddish", ["red"], False), ("is Red.", ["red"], True),
                                               ("42.5%", ["42.5%"], True), ("a", ["", " "], False), ("(x)", ["(x)"], True), ("New  York", ["new york"], True)])
def test_supports(text, answers, want): assert supports(text, answers) == want


def test_gate_orders_the_evidence(shaken):
    rows = examples((0,))
    weights = shaken.page_weights(R3Collator(shaken.processor, CONFIG).evidence(rows))[0]
    quoted = R3Collator(shaken.processor, CONFIG)(rows, shaken)["meta"][0]["evidence"]
    best = max(range(3), key=lambda j: weights[j].item())
    assert quoted[0]["image_id"] == rows[0].pages[best].image_id


def test_wrong_vector_widths_are_named(shaken):
    with pytest.raises(ConfigError, match="text vectors have width 20.*expects 384"): R3Collator(shaken.processor, replace(CONFIG, text_dim=384))(examples())


# saving --------------------------------------------------------------------------------------------------------------------------------

def test_save_and_load_give_equal_bits(shaken, tmp_path):
    collator = R3Collator(shaken.processor, CONFIG)
    batch = collator(examples(), shaken)
    back = R3Model.load(shaken.save_pretrained(tmp_path / "a"))
    assert torch.equal(logits(back, collator(examples(), back)), logits(shaken, batch))
    asked = collator(examples(), shaken, answers=False)
    assert back.generate(asked, 4) == shaken.generate(asked, 4)
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "modules.safetensors", "r3_config.json", "README.md"} <= names
    assert not any(n.endswith((".bin", ".pt", ".pth")) for n in names)
    assert R3Model.load(tmp_path / "a", disable_gate=True).r3.disable_gate


def test_teacher_is_not_saved_with_the_student(shaken, tmp_path):
    model = copy.copy(shaken)
    before = {p.name: p.read_bytes() for p in shaken.save_pretrained(tmp_path / "a").iterdir() if p.suffix == ".safetensors"}
    model.add_teacher()
    after = {p.name: p.read_bytes() for p in model.save_pretrained(tmp_path / "b").iterdir() if p.suffix == ".safetensors"}
    assert before == after
    R3Model.load(tmp_path / "b")


@pytest.mark.parametrize("name", ["modules.safetensors", "adapter_model.safetensors"])
@pytest.mark.parametrize("fault", ["missing", "extra", "renamed", "truncated", "absent"])
def test_bad_checkpoints_are_refused(shaken, tmp_path, name, fault):
    path = shaken.save_pretrained(tmp_path / "a") / name
    tensors = load_file(path)
    first = sorted(tensors)[0]
    if fault == "missing": tensors.pop(first)
    if fault == "extra": tensors["stranger"] = torch.zeros(1)
    if fault == "renamed": tensors["base." + first] = tensors.pop(first)
    save_file(tensors, path)
    if fault == "truncated": path.write_bytes(path.read_bytes()[:-100])
    if fault == "absent": path.unlink()
    with pytest.raises(CheckpointError): R3Model.load(tmp_path / "a")


def test_other_backbone_is_refused(shaken, tmp_path):
    shaken.save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match="other weights"): R3Model.load(tmp_path / "a", tiny.backbone(tmp_path / "b", seed=3))
    with pytest.raises(ConfigError, match="neither a folder nor"): R3Model.from_pretrained("no such/model id")


def test_modules_without_lora(folder, tmp_path):
    config = replace(CONFIG, lora_r=0)
    model = R3Model.from_pretrained(folder, config)
    model.add_teacher()
    batch = R3Collator(model.processor, config)(examples())
    back = R3Model.load(model.save_pretrained(tmp_path / "a"))
    assert torch.equal(logits(back, batch), logits(model, batch, role="teacher"))
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"modules_"}


def test_trainable_weights_stay_32_bit(folder):
    model = R3Model.from_pretrained(folder, CONFIG, dtype="bfloat16")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    batch = R3Collator(model.processor, CONFIG)(examples())
    assert logits(model, batch).isfinite().all()


# which layers train ---------------------------------------------------------------------------------------------------------------------

def lora_layers(model): return sorted({n.removeprefix("base_model.model.").split(".lora_A")[0] for n, _ in model.backbone.named_parameters() if ".lora_A." in n})


@pytest.mark.parametrize("targets, vision, language_names, vision_names", [
    (["attention"], False, {"q_proj", "k_proj", "v_proj", "o_proj"}, set()), (["all-linear"], False, set(LORA_TARGETS), set()),
    (["q_proj", "down_proj"], False, {"q_proj", "down_proj"}, set()), (["attention"], True, {"q_proj", "k_proj", "v_proj", "o_proj"}, {"qkv", "proj"}),
    (LORA_TARGETS, True, set(LORA_TARGETS), {"qkv", "proj", "linear_fc1", "linear_fc2"}), (["qkv"], True, set(), {"qkv"})])
def test_lora_goes_where_it_is_told(tmp_path, targets, vision, language_names, vision_names):
    folder = tiny.backbone(tmp_path / "backbone")
    small = dict(text_dim=20, image_dim=24, bottleneck=16, heads=2)
    model = R3Model.from_pretrained(folder, R3Config(**small, lora_targets=targets, freeze_vision=not vision))
    found = lora_layers(model)
    names = lambda test: {n.rsplit(".", 1)[-1] for n in found if test(n)}
    assert names(lambda n: "visual" not in n) == language_names and names(lambda n: "visual" in n) == vision_names
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad: p.add_(torch.randn_like(p) * .05)
    back = R3Model.load(model.save_pretrained(tmp_path / "saved"))
    assert back.r3.lora_targets == targets and lora_layers(back) == found
    mine, theirs = model.lora_parameters(), back.lora_parameters()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_checkpoints_from_before_these_options_open(tmp_path):
    folder = tiny.backbone(tmp_path / "backbone")
    saved = R3Model.from_pretrained(folder, R3Config(text_dim=20, image_dim=24, bottleneck=16, heads=2)).save_pretrained(tmp_path / "saved")
    info = json.loads((saved / "r3_config.json").read_text())
    for new in ("freeze_vision", "load_in_4bit"): info["config"].pop(new)
    (saved / "r3_config.json").write_text(json.dumps(info))
    assert R3Model.load(saved).r3 == R3Config(text_dim=20, image_dim=24, bottleneck=16, heads=2)


@pytest.mark.parametrize("targets, vision, says", [
    (["q_porj"], False, "language model has no linear layer 'q_porj' .did you mean 'q_proj'"), (["attention", "q_proj"], False, "attention and all-linear stand alone"),
    (["qkv"], False, "language model has no linear layer 'qkv'"), (["q_proj"], True, "no layer of the vision tower is among lora_targets")])
def test_wrong_targets(tmp_path, targets, vision, says):
    with pytest.raises(ConfigError, match=says): R3Model.from_pretrained(tiny.backbone(tmp_path), R3Config(lora_targets=targets, freeze_vision=not vision))


# four bits ------------------------------------------------------------------------------------------------------------------------------

def test_four_bits_without_library_or_gpu(tmp_path, monkeypatch):
    folder = tiny.backbone(tmp_path)
    monkeypatch.setattr("r3nb.model.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="load_in_4bit needs the package bitsandbytes; install it with pip install bitsandbytes"):
        R3Model.from_pretrained(folder, R3Config(load_in_4bit=True))
    monkeypatch.setattr("r3nb.model.importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="load_in_4bit needs a GPU"): R3Model.from_pretrained(folder, R3Config(load_in_4bit=True))
    with pytest.raises(ConfigError, match="weights of 4 bits cannot train"): R3Config(load_in_4bit=True, lora_r=0)


def test_four_bits_with_a_stand_in_for_the_library(tmp_path, monkeypatch):
    "What reaches transformers; bitsandbytes itself needs a GPU and is not run"
    import transformers
    (tmp_path / "lib" / "bitsandbytes").mkdir(parents=True)
    (tmp_path / "lib" / "bitsandbytes" / "__init__.py").write_text("__version__ = '0.50.0'\n")
    (tmp_path / "lib" / "bitsandbytes-0.50.0.dist-info").mkdir()
    (tmp_path / "lib" / "bitsandbytes-0.50.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: bitsandbytes\nVersion: 0.50.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    seen, real = {}, transformers.AutoModelForImageTextToText.from_pretrained
    def opened(folder, quantization_config=None, device_map=None, **kwargs):
        seen.update(q=quantization_config, device_map=device_map)
        return real(folder, **kwargs)
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", opened)
    model = R3Model.from_pretrained(tiny.backbone(tmp_path / "backbone"), R3Config(load_in_4bit=True), "bfloat16")
    q = seen["q"]
    assert (q.load_in_4bit, q.bnb_4bit_quant_type, q.bnb_4bit_use_double_quant) == (True, "nf4", True) and seen["device_map"] == {"": 3}
    assert q.bnb_4bit_compute_dtype == q.bnb_4bit_quant_storage == torch.bfloat16 and {"lm_head", "visual"} <= set(q.llm_int8_skip_modules)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad) and len(lora_layers(model)) == 14
