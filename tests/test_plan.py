"What fits where: counts, traces and commands for models of all families, hardware that is made up, estimates beside measurements, and the true widths of 8 billion parameters."
import copy
import json
import shlex
import warnings
from dataclasses import fields, replace
from functools import cache

import families
import pytest
import tiny
import torch
import torch.nn.functional as F
from test_families import examples
from test_model import CONFIG
from transformers import AutoConfig, AutoModelForImageTextToText

from r3nb import hardware, plan
from r3nb.backends import BACKENDS
from r3nb.core import ConfigError, parse_cli, read_json
from r3nb.hardware import GPUs, check_hardware, has_kernels, parse_gpus
from r3nb.mini import backbone_dir
from r3nb.model import R3Collator, R3Config, R3Model, add_lora
from r3nb.plan import METHODS, STRATEGIES, PlanConfig, activations, anatomy, backbone_config, budget, command, make_plan, measure, numel, open_model, report, row, shipped, skeleton, table
from r3nb.train import TrainConfig

BIG = "Qwen/Qwen3-VL-8B-Instruct"
pytestmark = pytest.mark.filterwarnings("ignore")


@cache
def traced(dtype=torch.float16, **options):
    "A backbone, counted and traced once for all fleets."
    return open_model(PlanConfig(**{"model_name": BIG} | options), dtype)


def rows(fleet, **options):
    "All rows of a plan for a fleet."
    return {(m, s): row(traced(**options), m, s, parse_gpus(fleet)) for m in METHODS for s in STRATEGIES}


@pytest.fixture(scope="module")
def big():
    with pytest.MonkeyPatch.context() as m:
        m.setattr(plan, "open_model", lambda cfg, dtype: traced() if (cfg, dtype) == (PlanConfig(BIG), torch.float16) else None) # traced once for all tests
        return make_plan(PlanConfig(BIG))


def by(p): return {(r["method"], r["strategy"]): r for r in p["rows"]}


# hardware ------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, want", [
    ("8xV100-32GB", GPUs(1, 8, "V100", 32)), ("4xA100-80GB", GPUs(1, 4, "A100", 80)), ("1x24GB", GPUs(1, 1, "", 24)), ("2x8xH100-80GB", GPUs(2, 8, "H100", 80)),
    ("16 GB", GPUs(1, 1, "", 16)), ("4 x L4", GPUs(1, 4, "L4", 24)), ("8xH100", GPUs(1, 8, "H100", 80)), ("2x24GB", GPUs(1, 2, "", 24)), ("2x8xV100-32GB", GPUs(2, 8, "V100", 32)),
    ("8 x A100 40 GB", GPUs(1, 8, "A100", 40)), ("A100-SXM4-80GB", GPUs(1, 1, "A100", 80)), ("2 x RTX 4090", GPUs(1, 2, "RTX4090", 24)), ("v100-16gb", GPUs(1, 1, "V100", 16)), ("3xRTX4090-24GiB", GPUs(1, 3, "RTX4090", 24)), ("2x4x11.5GB", GPUs(2, 4, "", 11.5))])
def test_fleets(text, want): assert parse_gpus(text) == want and parse_gpus(str(want)) == want


@pytest.mark.parametrize("text", ["", "8", "V100", "8xV100", "8x32", "xV100-32GB", "0xV100-32GB", "8x0GB", "-1x24GB", "2x2x2x24GB", "8xV100-32GB,1x24GB"])
def test_no_fleets(text):
    with pytest.raises(ConfigError, match="gpus"): parse_gpus(text)


def test_a_kind_of_two_sizes_asks_which():
    with pytest.raises(ConfigError, match=r"'8xV100', but a V100 comes with 16 or 32 GB; say which, as in 8xV100-32GB"): parse_gpus("8xV100")


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'A1000'.*did you mean 'A100'.*leave the name out, as in 8x80GB"): parse_gpus("8xA1000-80GB")


NEW, OLD = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"], ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


@pytest.mark.parametrize("capability, archs, want", [
    ((7, 0), NEW, False), ((7, 0), OLD, True), ((7, 2), OLD, True), ((6, 1), OLD, True), ((8, 9), OLD, True), ((12, 0), OLD, False), ((12, 0), NEW, True), ((13, 0), NEW, True),
    ((9, 0), ["sm_90a"], True), ((10, 3), NEW, True), ((8, 0), ["sm_86"], False), ((9, 0), ["compute_80"], True), ((7, 0), ["gfx90a"], True)])
def test_kernels(capability, archs, want): assert has_kernels(capability, archs) is want


@pytest.fixture
def machine(monkeypatch):
    "Pretend to have GPUs: (name, capability), and what torch was built for."
    def pretend(*devices, archs=NEW):
        for name, value in {"is_available": lambda: bool(devices), "device_count": lambda: len(devices), "get_arch_list": lambda: archs,
                            "get_device_name": lambda i=0: devices[i][0], "get_device_capability": lambda i=0: devices[i][1]}.items():
            monkeypatch.setattr(torch.cuda, name, value)
    return pretend


def test_hardware_of_this_machine(machine):
    machine(("Tesla V100-SXM2-32GB", (7, 0)))
    for flags in ({"fp16": True}, {"bf16": True}, {}):
        with pytest.raises(ConfigError, match=r"^torch \S+ has no code for Tesla V100-SXM2-32GB \(sm_70\), only for sm_75, .*torch==2\.10"): check_hardware(**flags)
    machine(("Tesla V100-SXM2-32GB", (7, 0)), archs=OLD)
    assert check_hardware(fp16=True) == ["Tesla V100-SXM2-32GB (sm_70), fp16"]
    assert "fp16 is not" in check_hardware()[0]
    with pytest.raises(ConfigError, match=r"sm_70\) has no bfloat16.*say fp16 instead"): check_hardware(bf16=True)
    machine(("NVIDIA H100", (9, 0)), ("NVIDIA T4", (7, 5)))
    with pytest.raises(ConfigError, match="NVIDIA T4"): check_hardware(bf16=True)
    assert len(check_hardware(fp16=True)) == 2
    machine()
    with pytest.raises(ConfigError, match="fp16 needs a GPU"): check_hardware(fp16=True)
    assert "CPU" in check_hardware(bf16=True)[0]


def test_a_build_for_other_makers_is_not_judged(machine, monkeypatch):
    machine(("AMD Instinct MI250X", (9, 0)), archs=["gfx90a"])
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert check_hardware(bf16=True) == ["AMD Instinct MI250X (sm_90), bf16"]


# counts --------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", list(read_json(plan.code_dir() / "assets/backbones.json")["backbones"]))
def test_shipped_backbones_have_the_published_size(name): assert numel(skeleton(backbone_config(name)).parameters()) == shipped()[name]["parameters"]


def test_counts_are_those_of_a_real_model():
    cfg = PlanConfig(str(backbone_dir()), lora_r=8, bottleneck=64, image_dim=64)
    m, real = open_model(cfg, torch.float32), R3Model.from_pretrained(backbone_dir(), R3Config())
    assert m.lora == numel(real.lora_parameters().values()) and m.modules == numel(real.modules_.parameters())
    assert m.total == numel(p for n, p in real.base.named_parameters() if "lora_" not in n)


def test_eight_billion(big):
    rows, n = by(big), big["parameters"]
    assert (n["backbone"], n["lora"], big["precision"], big["gpus"], big["estimated"]) == (8_767_123_696, 43_646_976, "fp16", "8xV100-32GB", {})
    body = skeleton(backbone_config(BIG))
    for lora, count in ((8, 21_823_488), (64, 174_587_904)): assert numel(add_lora(copy.deepcopy(body), R3Config(lora_r=lora)).parameters(), True) == count
    assert rows["LoRA", "ddp"]["gpu"]["weights"] == 2 * n["backbone"]
    assert rows["LoRA", "fsdp"]["gpu"]["weights"] == 2 * n["backbone"] / 8
    full = n["backbone"] - n["vision"] + n["modules"]
    assert rows["full", "fsdp"]["gpu"]["gradients"] + rows["full", "fsdp"]["gpu"]["optimizer"] == 16 * full / 8
    assert big["best"] == {"LoRA": "ddp", "QLoRA": "ddp", "full": "fsdp"}
    assert rows["full", "ddp"]["fits"] == "no" and "optimizer 98" in rows["full", "ddp"]["why"]
    assert 24e9 < rows["full", "fsdp"]["gpu_total"] < 29e9 and 105e9 < rows["full", "zero3_optimizer"]["host"]["moved"] < 180e9
    assert rows["full", "zero3"]["fits"] == "tight" and 30e9 < rows["full", "zero3"]["gpu_total"] < 34e9
    assert rows["full", "zero3"]["gpu"]["copies"] == 0 < rows["full", "ddp"]["gpu"]["copies"]
    assert any("torch==2.10" in f for f in big["facts"]) and any("no bfloat16" in f for f in big["facts"])
    everything = replace(traced().cfg, freeze_vision=False)
    assert round((16 * (n["backbone"] + n["modules"])) / 8e9, 1) == 17.6 and replace(traced(), cfg=everything).trained("full") == n["backbone"]


@cache
def training_options(words): return parse_cli(TrainConfig, list(words), prog="r3nb_train")


def test_rows_add_up_and_commands_are_training_s(big):
    known, other = {f.name for f in fields(TrainConfig)}, dict(freeze_vision=False, disable_teacher=False, gradient_checkpointing=False)
    more = rows("2x8xH100-80GB", **TINY | other).values()
    for r in [*big["rows"], *(r | {"command": command(PlanConfig(BIG, **other), "bf16", r["method"], r["strategy"], parse_gpus("2x8xH100-80GB")) if r["fits"] != "no" else ""} for r in more)]:
        assert (r["fits"] == "no") == bool(r["why"]) == (not r["command"])
        if "gpu_total" in r: assert r["gpu_total"] == pytest.approx(sum(r["gpu"].values())) and min(r["gpu"].values()) >= 0
        if not r["command"]: continue
        words = shlex.split(r["command"])
        words = words[next(i for i, w in enumerate(words) if w in ("r3nb.train", "r3nb_train")) + 1:]
        if "--backend" in words: # differs from row to row, and is checked where it is used
            assert "backend" in known and words[words.index("--backend") + 1] in BACKENDS
            at = words.index("--backend"); del words[at:at + 2]
        if "--deepspeed_config" in words:
            assert "deepspeed_config" in known and (plan.code_dir().parent / words[words.index("--deepspeed_config") + 1]).is_file()
            at = words.index("--deepspeed_config"); del words[at:at + 2]
        assert all(w[2:].removeprefix("no_") in known for w in words if w.startswith("--"))
        if "--fp16" not in words: continue # the same words but for the flags that differ
        cfg = training_options(tuple(words))
        assert (cfg.model_name, cfg.use_lora, cfg.load_in_4bit, cfg.max_tokens, cfg.grad_accum) == (BIG, r["method"] != "full", r["method"] == "QLoRA", R3Config.max_tokens, 4)
        assert (cfg.lora_r, cfg.bottleneck) == (8 if r["method"] == "full" else 16, 512) and cfg.fp16 != cfg.bf16


def test_a_file_in_the_command_becomes_its_folder(tmp_path):
    (tmp_path / "my model").mkdir()
    (file := tmp_path / "my model" / "config.json").write_text("{}")
    assert f"--model_name '{file.parent}'" in command(PlanConfig(str(file)), "fp16", "LoRA", "ddp", parse_gpus("1x24GB"))


TINY = dict(model_name=str(backbone_dir()), image_tokens=16, max_tokens=256)


def test_more_gpus_hold_less_each_and_more_tokens_need_more():
    total = lambda fleet="8xV100-32GB", **k: row(traced(**TINY | k), "full", "fsdp", parse_gpus(fleet))["gpu_total"]
    base = total()
    assert total("2x8xV100-32GB") < base < total("4xV100-32GB")
    assert base < total(max_tokens=512) and base < total(gradient_checkpointing=False) and base < total(disable_teacher=False)


def test_what_does_not_fit_says_why():
    card = rows("1x16GB")
    assert card["LoRA", "ddp"]["fits"] == "no" and "weights 17.5" in card["LoRA", "ddp"]["why"] and card["LoRA", "ddp"]["name"] == "one GPU"
    assert card["QLoRA", "ddp"]["fits"] == "yes" and command(traced().cfg, "fp16", "QLoRA", "ddp", parse_gpus("1x16GB")).startswith("r3nb_train ")
    assert "nobody to share" in card["LoRA", "fsdp"]["why"] and "not split" in card["QLoRA", "zero3_all"]["why"]
    long = row(traced(**TINY | {"max_tokens": 60_000}), "LoRA", "ddp", parse_gpus("8x3GB"))
    assert long["fits"] == "no" and "shorten max_tokens" in long["why"]
    poor = row(traced(**TINY | {"host_gb": 12}), "LoRA", "ddp", parse_gpus("8xV100-32GB"))
    assert "the host needs 16 of 13 GB" in poor["why"]


def test_precision_follows_the_gpu():
    small = str(backbone_dir())
    assert [hardware.half_precision(parse_gpus(g).capability) for g in ("1xV100-32GB", "1xA100-40GB", "1x24GB")] == ["fp16", "bf16", "fp16"]
    with pytest.raises(ConfigError, match="no bfloat16"): make_plan(PlanConfig(small, "1xT4-16GB", precision="bf16"))


# all families --------------------------------------------------------------------------------------------------------------------------

def qwen3_vl_moe():
    "Experts: each token passes through two of four."
    tok, *_ = families.qwen_parts(16)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0], "mrope_interleaved": True}
    text = families.text_config(tok, "qwen3_vl_moe_text", head_dim=16, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2, rope_parameters=rope)
    vision = dict(depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=32, num_position_embeddings=64, deepstack_visual_indexes=[0])
    return families.of("qwen3_vl_moe", "Qwen3VLMoeConfig")(text_config=text, vision_config=vision, **families.qwen_vision_ids(tok)), None


MADE = families.FAMILIES | families.UNLISTED | {"qwen3_vl": lambda: (AutoConfig.from_pretrained(backbone_dir()), None), "qwen3_vl_moe": qwen3_vl_moe}
BLIND = {"chameleon": "no tower", "got_ocr2": "not on fake tensors"} # families without a vision tower whose blocks can be traced


@pytest.mark.parametrize("name", MADE)
def test_every_family_can_be_planned(name, tmp_path, capfd):
    "From a folder with a configuration and nothing else; counts are the real model's, and the plan is all that is printed."
    MADE[name]()[0].save_pretrained(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["config.json"]
    capfd.readouterr()
    options = dict(max_tokens=96, image_tokens=16, bottleneck=16)
    m = open_model(PlanConfig(str(tmp_path), gradient_checkpointing=False, **options), torch.float16)
    with torch.device("meta"): real = AutoModelForImageTextToText.from_config(m.body.model.config)
    assert m.total == numel(real.parameters()) and m.lora == numel(add_lora(real.requires_grad_(False), R3Config(lora_r=16)).parameters(), True) > 0
    kept = activations(m, "lora")["kept"]
    if name in families.NAMES: assert kept > plan.text_case(m.body, "lora", replace(m.cfg, gradient_checkpointing=True), torch.float16).kept + m.little.kept
    assert kept > 96 * 32 * 2
    if name not in BLIND:
        n = plan.patches(m.body.model.config, 16)
        seen = plan.vision_case(m.body, "full, half weights", m.cfg, torch.float16, n)
        assert n >= 16 and seen.kept > 2 * n * plan.sight(m.body)[0] * 2 * 5 and seen.down > 0 # two blocks keep more than five tensors each
    assert not m.estimated and capfd.readouterr() == ("", "")


def test_what_cannot_be_traced_is_estimated_and_says_so(tmp_path, capfd):
    MADE["got_ocr2"]()[0].save_pretrained(tmp_path)
    capfd.readouterr()
    p = make_plan(PlanConfig(str(tmp_path), "2x1GB", max_tokens=96, image_tokens=16, bottleneck=16, freeze_vision=False, lora_targets=["attention"]))
    said = report(p)
    assert list(p["estimated"]) == ["the vision tower"] and "activations of the vision tower are estimated from widths, not traced (ValueError: " in said
    assert "activations, estimated" in table(p) and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["llava", "glm4v", "qwen3_vl_moe"])
def test_estimates_are_near_traces(name, tmp_path):
    "A plain model in a family's place, for families that do not need it."
    MADE[name]()[0].save_pretrained(tmp_path)
    m = open_model(PlanConfig(str(tmp_path), max_tokens=96, image_tokens=16, bottleneck=16), torch.float16)
    own, plain = (plan.text_case(body, "lora", m.cfg, m.dtype) for body in (m.body, anatomy(skeleton(plan.stand_in(m.body), m.dtype))))
    assert .75 < (plain.kept + plain.down) / (own.kept + own.down) < 1.25


CLIP = dict(model_type="clip_vision_model", hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14, projection_dim=768)
LLAMA = dict(model_type="llama", vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32)
SIGLIP = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=512, patch_size=16)
SMALL = dict(model_type="llama", vocab_size=49280, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=False)
QWEN2 = dict(model_type="qwen2", vocab_size=151674, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4)
INTERN = dict(model_type="internvl_vision", hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=[448, 448], patch_size=[14, 14], attention_bias=True)
TRUE_SIZES = {
    "llava": (dict(model_type="llava", vision_config=CLIP, text_config=LLAMA, vision_feature_layer=-2), 7.06e9),
    "smolvlm": (dict(model_type="smolvlm", vision_config=SIGLIP | {"model_type": "smolvlm_vision"}, text_config=SMALL, scale_factor=4), 0.256e9),
    "internvl": (dict(model_type="internvl", vision_config=INTERN, text_config=QWEN2, tie_word_embeddings=False), 7.94e9)}


MOE = dict(model_type="qwen3_vl_moe", text_config=dict(model_type="qwen3_vl_moe_text", vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=48, num_attention_heads=32,
                                                      num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
                                                      rope_parameters={"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}),
           vision_config=dict(depth=27, hidden_size=1152, intermediate_size=4304, num_heads=16, out_hidden_size=2048, num_position_embeddings=2304), tie_word_embeddings=False)
TRUE_SIZES["qwen3_vl_moe"] = (MOE, 31.07e9)


@pytest.mark.parametrize("name", TRUE_SIZES)
def test_other_models_of_true_size(name, tmp_path):
    config, size = TRUE_SIZES[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    m, fleet = open_model(PlanConfig(str(tmp_path)), torch.bfloat16), parse_gpus("4xA100-80GB")
    one, sharded = row(m, "LoRA", "ddp", fleet), row(m, "full", "fsdp", fleet)
    assert m.total == pytest.approx(size, rel=.02) and not m.estimated
    assert one["gpu"]["weights"] == 2 * m.total and one["fits"] == "yes" and 0.1e9 < one["gpu"]["activations"] < 4e9
    assert sharded["fits"] == ("yes" if size < 30e9 else "no")


# ZeRO-3's linear layer -----------------------------------------------------------------------------------------------------------------

def test_zero3_keeps_what_deepspeed_s_own_layer_keeps():
    theirs = pytest.importorskip("deepspeed.runtime.zero.linear").zero3_linear_wrap
    got = {}
    for linear in (theirs, plan.regathered):
        net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
        x = torch.arange(640.).view(2, 5, 64).div(640).requires_grad_()
        with torch.no_grad():
            for i, p in enumerate(net.parameters()): p.copy_(torch.linspace(-.1, .1 + i / 10, p.numel()).view(p.shape))
        for p in net.parameters(): p.grad = torch.zeros_like(p)
        with plan.patch.object(F, "linear", linear), plan.Live([x, *net.parameters(), *(p.grad for p in net.parameters())]) as live:
            with torch.autocast("cpu", torch.bfloat16): out = net(x).sum()
            kept = live.now
            out.backward()
        got[linear] = kept, [p.grad for p in net.parameters()]
    (kept, grads), (ours, own) = got.values()
    assert kept == ours
    for a, b in zip(grads, own, strict=True): torch.testing.assert_close(a, b)


# estimates beside measurements ---------------------------------------------------------------------------------------------------------

def planned_and_measured(folder, method, checkpointing, freeze_vision=True):
    "The parts of a step on real tensors, and those that the planner expects."
    config = replace(CONFIG, trust=1., heads=4, lora_r=8 if method == "LoRA" else 0)
    model = R3Model.from_pretrained(folder, config).train()
    if method == "full":
        for n, p in model.backbone.named_parameters(): p.requires_grad_(not freeze_vision or not any(w in n for w in ("visual", "vision")))
    if checkpointing: model.base.activation_checkpointing_enable({"use_reentrant": False})
    batch = R3Collator(model.processor, config)(examples(config=config), model)
    def loss():
        out = model(batch)
        return F.cross_entropy(out.logits.float(), out.targets, reduction="sum") + 0 * sum(t.sum() for t in out.seen.tokens)
    got = measure(model, loss, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]), batch)
    ids, labels, B = batch["inputs"]["input_ids"], batch["labels"], len(batch["labels"])
    c = model.config
    image = next(i for k in ("image_token_id", "image_token_index") if (i := getattr(c, k, None)) is not None)
    cfg = PlanConfig(str(folder), "1x24GB", max_tokens=ids.shape[1], image_tokens=int((ids == image).sum()) // B, batch_size=B, precision="fp32", answer_tokens=-(-int((labels != -100).sum()) // B),
                     lora_r=8, bottleneck=16, text_dim=20, image_dim=24, gradient_checkpointing=checkpointing, freeze_vision=freeze_vision)
    m = open_model(cfg, torch.float32)
    parts, case = budget(m, method, "ddp", parse_gpus(cfg.gpus))[0], activations(m, "lora" if method == "LoRA" else "full, half weights")
    return {k: (v, got[k]) for k, v in ({k: parts[k] for k in ("weights", "gradients", "optimizer")} | {"kept": case["kept"], "peak": sum(case[k] for k in ("activations", "copies", "logits"))}).items()}


@pytest.mark.parametrize("name, method, checkpointing, freeze", [
    ("smolvlm", "LoRA", False, True), ("gemma3", "full", False, True), ("llava", "LoRA", False, True), ("qwen2_5_vl", "full", True, True), ("qwen3_vl", "full", False, False), ("mistral3", "full", False, False)])
def test_the_estimate_is_near_the_measurement(name, method, checkpointing, freeze, tmp_path):
    parts = planned_and_measured(families.backbone(name, tmp_path / name), method, checkpointing, freeze)
    assert freeze or parts.pop("weights") == (0, 0) # then nothing is frozen
    ratios = {k: want / got for k, (want, got) in parts.items()}
    assert all(.85 < r < 1.15 for r in ratios.values()), (ratios, parts)


def test_live_counts_storages_once_and_only_while_they_live():
    x = torch.zeros(100)
    with plan.Live([x]) as live:
        y = x + 1
        view = y[10:]
        assert live.now == 400
        del y
        assert live.now == 400
        del view
        x.mul_(2)
        assert (live.now, live.peak) == (0, 400)


# true widths ---------------------------------------------------------------------------------------------------------------------------

def test_true_widths_of_8b_forward_and_backward():
    "One layer of each tower at Qwen3-VL-8B's widths, through the project's own wrapper, LoRA and modules."
    processor, given = tiny.processor(), copy.deepcopy(shipped()[BIG]["config"])
    ids = processor.tokenizer.convert_tokens_to_ids
    given["text_config"] |= {"num_hidden_layers": 1, "vocab_size": 2048}
    given["vision_config"] |= {"depth": 1, "deepstack_visual_indexes": [0]}
    given |= {"image_token_id": ids("<|image_pad|>"), "video_token_id": ids("<|video_pad|>"), "vision_start_token_id": ids("<|vision_start|>"), "vision_end_token_id": ids("<|vision_end|>")}
    backbone = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**given), dtype=torch.bfloat16)
    config = replace(CONFIG, lora_r=16, bottleneck=512, heads=8, trust=1.)
    model = R3Model(backbone, processor, config, {"backbone": "8B widths", "backbone_sha256": ""}).train()
    with torch.no_grad():
        for n, p in model.lora_parameters().items():
            if "lora_B" in n: p.normal_(0, .01)
    batch = R3Collator(model.processor, config)(examples(config=config), model)
    out = model(batch)
    answers = int((batch["labels"][:, 1:] != -100).sum())
    assert out.logits.shape == (answers, 2048) and [t.shape for t in out.seen.tokens] == [(3, 2, 4096), (3, 2, 4096), (3, 1, 4096)]
    assert out.logits.isfinite().all()
    seen = out.seen
    (F.cross_entropy(out.logits.float(), out.targets) + seen.confidence_logits.sum() + seen.relevance_logits.sum() + sum(t.float().sum() for t in seen.tokens)).backward()
    lora = {n: p for n, p in model.lora_parameters().items()}
    widths = {"q_proj": (4096, 4096), "k_proj": (4096, 1024), "v_proj": (4096, 1024), "o_proj": (4096, 4096), "gate_proj": (4096, 12288), "up_proj": (4096, 12288), "down_proj": (12288, 4096)}
    for n, p in lora.items():
        into, out_of = widths[n.split(".")[-3]]
        assert tuple(p.shape) == ((16, into) if "lora_A" in n else (out_of, 16)) and p.dtype == torch.float32
        assert p.grad.isfinite().all() and p.grad.any(), n
    assert len(lora) == 14
    for n, p in model.modules_.named_parameters():
        if p.grad is not None: assert p.grad.isfinite().all(), n
    assert model.modules_.prefix.up.weight.shape == (4096, 512) and model.modules_.prefix.up.weight.grad.any()
    assert model.base.model.visual.blocks[0].mlp.linear_fc1.weight.shape == (4304, 1152) and all(p.grad is None for p in model.base.model.visual.parameters())


# command line --------------------------------------------------------------------------------------------------------------------------

def test_command_line(tmp_path, capsys):
    plan.main(["--model_name", str(backbone_dir()), "--gpus", "2xA100-80GB", "--max_tokens", "128", "--image_tokens", "16", "--bottleneck", "64", "--out_json", str(tmp_path / "p.json")])
    out, saved = capsys.readouterr().out, read_json(tmp_path / "p.json")
    assert "torchrun --nproc_per_node=2 -m r3nb.train --backend ddp" in out and "| LoRA " in out and "--bf16" in out
    assert len(saved["rows"]) == 3 * len(STRATEGIES) and saved["best"]["LoRA"] == "ddp"


@pytest.mark.parametrize("words, said", [
    (["--gpus", "8xV100"], "comes with 16 or 32 GB"), (["--gpus", "many"], "no GPU of the kind"), (["--gpus", "8x32"], "expected COUNTxKIND-MEMORY"), (["--max_tokens", "0"], "max_tokens is 0"), (["--image_tokens", "4352"], "image_tokens is 4352"), (["--max_pixels", "-1"], "max_pixels is -1"), (["--bottleneck", "63"], "multiple"),
    (["--lora_targets", "q_porj"], "did you mean 'q_proj'")])
def test_wrong_options(words, said, capsys):
    with pytest.raises(SystemExit) as e: plan.main(["--model_name", str(backbone_dir()), *words])
    assert e.value.code == 2 and said in capsys.readouterr().err


def test_wrong_models(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write = lambda name, **c: (tmp_path / name).write_text(json.dumps(c)) and str(tmp_path / name)
    (tmp_path / "torn.json").write_text("{")
    (tmp_path / "folder").mkdir()
    small = dict(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=50)
    for name, said in ((str(tmp_path / "none.json"), "no such file"), (str(tmp_path / "folder"), "has no config.json"), (str(tmp_path / "torn.json"), "not JSON"),
                       (write("odd.json", model_type="my_own"), "does not know this configuration"), (write("text.json", model_type="llama"), "AutoModelForImageTextToText"),
                       (write("t5.json", model_type="t5", **small), "encoder-decoder"), ("Qwen/Qwen3-VL-9B-Instruct", "did you mean 'Qwen/Qwen3-VL-8B-Instruct'")):
        with pytest.raises(SystemExit): plan.main(["--model_name", name])
        err = capsys.readouterr().err
        assert err.startswith("error: ") and said in err and err.count("\n") == 1, err


def test_a_plan_for_people(big):
    out = report(big)
    assert "full: FSDP2 (yes" in out and "8,767,123,696 parameters" in out and "torch==2.10" in out
    assert "activations are traced" in out and "estimated" not in out
    lacking = big | {"best": dict.fromkeys(METHODS)}
    assert "full: does not fit. The nearest is ZeRO-3, all on host" in report(lacking)


def test_facts_of_every_kind():
    for kind, capability in hardware.KINDS.items():
        with warnings.catch_warnings(action="error"): said = hardware.facts(kind, capability)
        assert hardware.half_precision(capability) in ("fp16", "bf16") and f"--{hardware.half_precision(capability)}" in said[0]


def test_units_are_gathered_one_at_a_time():
    body = anatomy(skeleton(backbone_config(BIG), torch.float16))
    assert set(body.units) >= {"embedding", "head"} and len(body.units) == 65
    assert "head" not in anatomy(skeleton(backbone_config("Qwen/Qwen3-VL-4B-Instruct"), torch.float16)).units  # tied: it stays with the rest
