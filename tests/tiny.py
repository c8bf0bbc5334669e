"A tiny random Qwen3-VL with its real processor, a tiny CLIP, and a handful of documents: what the tests of model and training stand on."
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration,
                          Qwen3VLProcessor)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from r3nb.core import QARecord, write_jsonl

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT = ("{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{%- if m['content'] is string %}{{ m['content'] }}{%- else %}"
        "{%- for c in m['content'] %}{%- if c['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
        "{%- elif c['type'] == 'text' %}{{ c['text'] }}{%- endif %}{%- endfor %}{%- endif %}{{ '<|im_end|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}")


def processor():
    "A byte-level tokenizer without merges and Qwen3-VL's image processor, for pictures of 1 to 16 visual tokens."
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(s, special=True) for s in SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="right",
                                   model_input_names=["input_ids", "attention_mask"])
    half = dict(image_mean=[.5] * 3, image_std=[.5] * 3)
    images = Qwen2VLImageProcessor(patch_size=16, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128}, **half)
    videos = Qwen3VLVideoProcessor(patch_size=16, temporal_patch_size=2, merge_size=2)
    return Qwen3VLProcessor(image_processor=images, tokenizer=fast, video_processor=videos, chat_template=CHAT)


def backbone(folder, spare=64, seed=0, tie=False):
    "Save a random Qwen3-VL of 0.1M parameters; `spare` embedding rows beyond the tokenizer's ids (0 forces a resize)."
    proc = processor()
    ids = proc.tokenizer.convert_tokens_to_ids
    text = dict(vocab_size=len(proc.tokenizer) + spare, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, head_dim=16, max_position_embeddings=4096, bos_token_id=ids("<|endoftext|>"), eos_token_id=ids("<|im_end|>"),
                rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True})
    vision = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=2, patch_size=16, temporal_patch_size=2, spatial_merge_size=2,
                  out_hidden_size=64, num_position_embeddings=64, deepstack_visual_indexes=[0])
    cfg = Qwen3VLConfig(text_config=text, vision_config=vision, image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
                        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=tie)
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(cfg)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1: p.mul_(4)  # at width 64 the stock initialisation gives logits near zero; make differences visible
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ids("<|im_end|>"), proc.tokenizer.pad_token_id
    model.save_pretrained(folder)
    proc.save_pretrained(folder)
    return Path(folder)


def clip(folder, seed=0):
    "Save a random CLIP with 24-d outputs."
    torch.manual_seed(seed)
    tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    cfg = CLIPConfig(text_config=dict(tower, vocab_size=64, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=2),
                     vision_config=dict(tower, image_size=64, patch_size=16), projection_dim=24)
    CLIPModel(cfg).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    return Path(folder)


def page(i, size=(96, 128)):
    "A drawn page: a coloured band and two lines of text."
    g = np.random.default_rng(i)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, size[0], 20 + 2 * i), fill=tuple(int(v) for v in g.integers(0, 255, 3)))
    draw.text((6, 50), f"Total {100 + i}", fill="black")
    for _ in range(4): draw.rectangle([*(int(v) for v in g.integers(0, 60, 2)), *(int(v) for v in g.integers(60, 96, 2))], outline="navy")
    return image


def records(n=8):
    "Records of two datasets; the picture of record i is `page(i)`."
    names = ["Oslo", "Rome", "Lima", "Cairo", "Delhi", "Quito", "Paris", "Sofia"]
    return [QARecord(f"demo_train_{i}", ["screenqa", "chartqa"][i % 2], "train", f"demo/{i}", f"demo/{i}.png", f"What is the total of {names[i % 8]}?",
                     str(100 + i), [str(100 + i)], f"{names[i % 8]} report Total {100 + i} Orders {i * 7}", ocr_conf=.9) for i in range(n)]


def world(folder, n=8, sizes=((96, 128),)):
    "Write pictures (of the given sizes, in turn), a JSONL, a CLIP and an index into a folder; return their paths."
    from r3nb.indices import EvidenceIndex
    folder = Path(folder)
    (folder / "raw" / "demo").mkdir(parents=True, exist_ok=True)
    rows = records(n)
    for i in range(n): page(i, sizes[i % len(sizes)]).save(folder / "raw" / "demo" / f"{i}.png")
    write_jsonl(folder / "train.jsonl", [r.to_dict() for r in rows])
    clip(folder / "clip")
    EvidenceIndex.build(rows, folder / "raw", folder / "index", "minilm", str(folder / "clip"))
    return SimpleNamespace(records=rows, jsonl=folder / "train.jsonl", root=folder / "raw", index=folder / "index", clip=folder / "clip")


def found(i, n=8, k=2):
    "Made-up evidence for record i: per channel k other records, as `r3nb.indices.retrieve` returns it."
    rows = records(n)
    item = lambda j, c: SimpleNamespace(image_id=rows[j].image_id, image_path=rows[j].image_path, text=rows[j].pseudo_text, score=.9 - .1 * ((j - i) % n),
                                        channel=c, row=j, passages=(SimpleNamespace(text=rows[j].pseudo_text, score=.9 - .1 * ((j - i) % n), at=0, row=j),))
    return {"text": [item((i + s) % n, "text") for s in range(1, k + 1)], "image": [item((i + s) % n, "image") for s in range(2, k + 2)]}


def fake_index(n=8, text_dim=20, image_dim=24):
    "Vectors without encoders, enough for building examples when evidence and own feature are given."
    g = np.random.default_rng(5)
    unit = lambda d: (lambda v: v / np.linalg.norm(v, axis=1, keepdims=True))(g.standard_normal((n, d)).astype("float32"))
    store = {"text": unit(text_dim), "image": unit(image_dim)}
    return SimpleNamespace(vectors=store.__getitem__)


def damaged(i, level=.5):
    "Record i as a corruption would hand it over, without running one."
    r, im = records(i + 1)[i], page(i)
    half = r.pseudo_text[: max(1, int(len(r.pseudo_text) * (1 - level)))]
    return SimpleNamespace(image=im.resize((24, 32)).resize(im.size) if level else im, pseudo_text=half if level else r.pseudo_text, question=r.question,
                           c_vis=1 - level, c_text=1 - level, c_vis_map=np.ones((8, 8), "float32"), families=())


def prepared(folder, n=8):
    "The folders of a study as its first three stages leave them, around a small world; a stage notebook can begin there."
    folder = Path(folder)
    made = world(folder / "made", n)
    for stage, links in {"0_world": {"raw": made.root}, "1_prepare": {"train.jsonl": made.jsonl}, "2_index": {"index": made.index}}.items():
        (folder / stage).mkdir()
        for name, to in links.items(): (folder / stage / name).symlink_to(to.resolve())
        (folder / stage / "manifest.json").write_text("{}")
    return made
