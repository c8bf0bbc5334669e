"""Tiny random models of many families, each with its own processor and a chat template in its family's manner: what the tests of "any model" stand on."""
from importlib import import_module
from pathlib import Path

import tiny
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

TURN = ("{{%- for m in messages %}}{{{{ '{start}' + {role} + '{after}' }}}}{{%- if m['content'] is string %}}{{{{ m['content'] }}}}{{%- else %}}"
        "{{%- for c in m['content'] %}}{{%- if c['type'] == 'image' %}}{{{{ '{image}' }}}}{{%- elif c['type'] == 'text' %}}{{{{ c['text'] }}}}{{%- endif %}}"
        "{{%- endfor %}}{{%- endif %}}{{{{ '{end}' }}}}{{%- endfor %}}{{%- if add_generation_prompt %}}{{{{ '{start}{speaker}{cut}' }}}}{{%- endif %}}")


def template(start="<|im_start|>", after="\\n", end="<|im_end|>\\n", image="<image>", role="m['role']", speaker="assistant", bos="", cut=None):
    "A chat template: how turns begin, how they end, and what stands for the picture."
    cut = after if cut is None else cut
    return bos + TURN.format(start=start, after=after, end=end, image=image, role=role, speaker=speaker, cut=cut)


CHATML = template()
GEMMA = template("<start_of_turn>", end="<end_of_turn>\\n", speaker="model", bos="{{ bos_token }}", image="<start_of_image>",
                 role="('model' if m['role'] == 'assistant' else m['role'])")
PLAIN = template("", ": ", " ", speaker="ASSISTANT", cut=":", role="m['role'] | upper")  # LLaVA's: the end of a turn is written nowhere
SPOKEN = template("", ":", "<end_of_utterance>\\n", role="m['role'] | capitalize", speaker="Assistant", bos="<|im_start|>")


def tokenizer(special=(), bos=None, eos="<|im_end|>", pad="<|endoftext|>", side="right", **named):
    "A byte-level tokenizer without merges; `bos` is put before every text, as Llama's and Gemma's do; `named` become attributes such as `image_token`."
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = list(dict.fromkeys(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *([bos] if bos else []), *([eos] if eos else []), *special, *named.values()]))
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in names])
    if bos: tok.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tok.token_to_id(bos))])
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token=eos, bos_token=bos, pad_token=pad, padding_side=side,
                                   model_input_names=["input_ids", "attention_mask"], extra_special_tokens=named)


def of(module, name): return getattr(import_module(f"transformers.models.{module}"), name)


def text_config(tok, kind="qwen2", **more):
    "The language model that most families share."
    return {"model_type": kind, "vocab_size": len(tok) + 16, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id} | more


def vision_config(kind, **more):
    return {"model_type": kind, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8} | more


SQUARE = {"height": 32, "width": 32}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}


def qwen_vision_ids(tok):
    ids = tok.convert_tokens_to_ids
    return dict(image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"), vision_start_token_id=ids("<|vision_start|>"),
                vision_end_token_id=ids("<|vision_end|>"))


def qwen_parts(patch):
    tok = tokenizer(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"])
    images = of("qwen2_vl", "Qwen2VLImageProcessor")(patch_size=patch, size={"shortest_edge": (2 * patch)**2, "longest_edge": (8 * patch)**2})
    return tok, images, of("qwen2_vl", "Qwen2VLVideoProcessor")(patch_size=patch), template(image="<|vision_start|><|image_pad|><|vision_end|>")


def qwen2_5_vl():
    tok, images, videos, chat = qwen_parts(14)
    vision = dict(depth=2, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=14, out_hidden_size=32, window_size=56, fullatt_block_indexes=[1])
    cfg = of("qwen2_5_vl", "Qwen2_5_VLConfig")(text_config=text_config(tok, "qwen2_5_vl_text", rope_parameters=MROPE), vision_config=vision, **qwen_vision_ids(tok))
    return cfg, of("qwen2_5_vl", "Qwen2_5_VLProcessor")(images, tok, videos, chat_template=chat)


def qwen2_vl():
    tok, images, videos, chat = qwen_parts(14)
    vision = dict(depth=2, embed_dim=32, hidden_size=32, mlp_ratio=2, num_heads=2, patch_size=14)
    cfg = of("qwen2_vl", "Qwen2VLConfig")(text_config=text_config(tok, "qwen2_vl_text", rope_parameters=MROPE), vision_config=vision, **qwen_vision_ids(tok))
    return cfg, of("qwen2_vl", "Qwen2VLProcessor")(images, tok, videos, chat_template=chat)


def glm4v():
    tok = tokenizer(["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|user|>", "<|assistant|>", "<|image|>", "<|video|>"])
    ids = tok.convert_tokens_to_ids
    vision = dict(depth=2, hidden_size=32, intermediate_size=48, out_hidden_size=32, num_heads=2, image_size=56)
    cfg = of("glm4v", "Glm4vConfig")(
        text_config=text_config(tok, "glm4v_text", rope_parameters=MROPE), vision_config=vision, image_token_id=ids("<|image|>"), video_token_id=ids("<|video|>"),
        image_start_token_id=ids("<|begin_of_image|>"), image_end_token_id=ids("<|end_of_image|>"), video_start_token_id=ids("<|begin_of_video|>"),
        video_end_token_id=ids("<|end_of_video|>"))
    images = of("glm4v", "Glm4vImageProcessor")(size={"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 32})
    chat = template("<|", "|>\\n", "", image="<|begin_of_image|><|image|><|end_of_image|>")
    return cfg, of("glm4v", "Glm4vProcessor")(images, tok, of("glm4v", "Glm4vVideoProcessor")(), chat_template=chat)


IDEFICS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7))]


def idefics3():
    tok = tokenizer(IDEFICS, eos="<end_of_utterance>")
    cfg = of("idefics3", "Idefics3Config")(text_config=text_config(tok, "llama"), vision_config=vision_config("idefics3_vision"), scale_factor=2,
                                           image_token_id=tok.convert_tokens_to_ids("<image>"), pad_token_id=tok.pad_token_id)
    images = of("idefics3", "Idefics3ImageProcessor")(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return cfg, of("idefics3", "Idefics3Processor")(images, tok, image_seq_len=4, chat_template=SPOKEN)


def smolvlm():
    tok = tokenizer([*IDEFICS, "<video>"], eos="<end_of_utterance>")
    cfg = of("smolvlm", "SmolVLMConfig")(text_config=text_config(tok, "llama"), vision_config=vision_config("smolvlm_vision"), scale_factor=2,
                                         image_token_id=tok.convert_tokens_to_ids("<image>"), pad_token_id=tok.pad_token_id)
    images = of("smolvlm", "SmolVLMImageProcessor")(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    videos = of("smolvlm", "SmolVLMVideoProcessor")(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return cfg, of("smolvlm", "SmolVLMProcessor")(images, tok, videos, image_seq_len=4, chat_template=SPOKEN)


def idefics2():
    tok = tokenizer(["<fake_token_around_image>", "<image>", "<end_of_utterance>"], eos="<|endoftext|>")
    perceiver = dict(hidden_size=32, resampler_n_latents=4, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=16, num_key_value_heads=1)
    cfg = of("idefics2", "Idefics2Config")(text_config=text_config(tok, "mistral", pad_token_id=tok.pad_token_id), perceiver_config=perceiver,
                                           vision_config=vision_config("idefics2_vision", image_size=64), image_token_id=tok.convert_tokens_to_ids("<image>"))
    images = of("idefics2", "Idefics2ImageProcessor")(size={"shortest_edge": 32, "longest_edge": 64})
    return cfg, of("idefics2", "Idefics2Processor")(images, tok, image_seq_len=4, chat_template=SPOKEN)


def llava_onevision():
    tok = tokenizer(["<image>", "<video>"])
    ids, grid = tok.convert_tokens_to_ids, [[32, 32], [32, 64], [64, 32], [64, 64]]
    cfg = of("llava_onevision", "LlavaOnevisionConfig")(text_config=text_config(tok), vision_config=vision_config("siglip_vision_model", vision_use_head=False),
                                                       image_token_index=ids("<image>"), video_token_index=ids("<video>"), image_grid_pinpoints=grid)
    images = of("llava_onevision", "LlavaOnevisionImageProcessor")(size=SQUARE, image_grid_pinpoints=grid)
    videos = of("llava_onevision", "LlavaOnevisionVideoProcessor")(size=SQUARE)
    return cfg, of("llava_onevision", "LlavaOnevisionProcessor")(images, tok, videos, num_image_tokens=16, vision_feature_select_strategy="full",
                                                                 chat_template=template(image="<image>\\n"))


def llava_next():
    tok = tokenizer(["<image>"], bos="<s>", eos="</s>", side="left")
    grid = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
    cfg = of("llava_next", "LlavaNextConfig")(text_config=text_config(tok, "llama", bos_token_id=tok.bos_token_id), image_grid_pinpoints=grid, image_seq_length=16,
                                              vision_config=vision_config("clip_vision_model", projection_dim=32), image_token_index=tok.convert_tokens_to_ids("<image>"))
    images = of("llava_next", "LlavaNextImageProcessor")(size={"shortest_edge": 32}, crop_size=SQUARE, image_grid_pinpoints=grid)
    return cfg, of("llava_next", "LlavaNextProcessor")(images, tok, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
                                                       chat_template=PLAIN)


def llava():
    tok = tokenizer(["<image>"], bos="<s>", eos="</s>", pad=None)
    cfg = of("llava", "LlavaConfig")(text_config=text_config(tok, "llama", bos_token_id=tok.bos_token_id), image_seq_length=16,
                                     vision_config=vision_config("clip_vision_model", projection_dim=32), image_token_index=tok.convert_tokens_to_ids("<image>"))
    images = of("clip", "CLIPImageProcessor")(size={"shortest_edge": 32}, crop_size=SQUARE)
    return cfg, of("llava", "LlavaProcessor")(images, tok, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=PLAIN)


def internvl():
    tok = tokenizer(start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>")
    vision = vision_config("internvl_vision", image_size=[32, 32], patch_size=[8, 8])
    cfg = of("internvl", "InternVLConfig")(text_config=text_config(tok), vision_config=vision, image_seq_length=4,
                                           image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"), tie_word_embeddings=False)
    images = of("got_ocr2", "GotOcr2ImageProcessor")(size=SQUARE, crop_to_patches=True, max_patches=4)
    return cfg, of("internvl", "InternVLProcessor")(images, tok, of("internvl", "InternVLVideoProcessor")(size=SQUARE), image_seq_length=4,
                                                    chat_template=template(image="<IMG_CONTEXT>\\n"))


def gemma3():
    tok = tokenizer(["<start_of_turn>", "<end_of_turn>"], bos="<bos>", eos="<eos>", image_token="<image_soft_token>",
                    boi_token="<start_of_image>", eoi_token="<end_of_image>")
    ids = tok.convert_tokens_to_ids
    text = text_config(tok, "gemma3_text", head_dim=16, sliding_window=24, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=16,
                       vocab_size=len(tok))  # no spare row, tied: the embedding has to grow
    cfg = of("gemma3", "Gemma3Config")(text_config=text, vision_config=vision_config("siglip_vision_model", vision_use_head=False), mm_tokens_per_image=4,
                                       boi_token_index=ids("<start_of_image>"), eoi_token_index=ids("<end_of_image>"), image_token_index=ids("<image_soft_token>"))
    images = of("gemma3", "Gemma3ImageProcessor")(size=SQUARE, do_pan_and_scan=True, pan_and_scan_min_crop_size=16, pan_and_scan_max_num_crops=2,
                                                 pan_and_scan_min_ratio_to_activate=1.2)
    return cfg, of("gemma3", "Gemma3Processor")(images, tok, chat_template=GEMMA, image_seq_length=4)


def paligemma():
    tok = tokenizer(["<image>"], bos="<bos>", eos="<eos>")
    images = of("siglip", "SiglipImageProcessor")(size=SQUARE)
    images.image_seq_length = 16
    proc = of("paligemma", "PaliGemmaProcessor")(images, tok, chat_template=template("", "", "", role="''", speaker=""))
    text = text_config(tok, "gemma", head_dim=8, vocab_size=len(tok) + 16)
    cfg = of("paligemma", "PaliGemmaConfig")(text_config=text, vision_config=vision_config("siglip_vision_model", vision_use_head=False, projection_dim=32),
                                             image_token_index=tok.convert_tokens_to_ids("<image>"), projection_dim=32, hidden_size=32, tie_word_embeddings=False)
    return cfg, proc


def mistral3():
    tok = tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"], bos="<s>", eos="</s>")
    images = of("pixtral", "PixtralImageProcessor")(patch_size=8, size={"longest_edge": 64})
    chat = ("{{ bos_token }}{%- for m in messages %}{%- if m['role'] == 'user' %}{{ '[INST]' }}{%- for c in m['content'] %}{%- if c['type'] == 'image' %}{{ '[IMG]' }}"
            "{%- else %}{{ c['text'] }}{%- endif %}{%- endfor %}{{ '[/INST]' }}{%- else %}{%- if m['content'] is string %}{{ m['content'] + eos_token }}{%- else %}"
            "{{ m['content'][0]['text'] + eos_token }}{%- endif %}{%- endif %}{%- endfor %}")
    proc = of("pixtral", "PixtralProcessor")(images, tok, patch_size=8, spatial_merge_size=2, chat_template=chat)
    vision = vision_config("pixtral", image_size=64, head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    cfg = of("mistral3", "Mistral3Config")(text_config=text_config(tok, "mistral", head_dim=8), vision_config=vision, spatial_merge_size=2,
                                           image_token_index=tok.convert_tokens_to_ids("[IMG]"), tie_word_embeddings=False)
    return cfg, proc


def aya_vision():
    names = ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL",
             *(f"TILE_{i}" for i in range(1, 13)), "<image>"]
    tok = tokenizer(names, bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>")
    images = of("got_ocr2", "GotOcr2ImageProcessor")(size=SQUARE, crop_to_patches=True, max_patches=4)
    proc = of("aya_vision", "AyaVisionProcessor")(images, tok, patch_size=8, img_size=32, downsample_factor=2,
                                                  chat_template=template("<|START_OF_TURN_TOKEN|>", "", "<|END_OF_TURN_TOKEN|>", bos="{{ bos_token }}"))
    text = text_config(tok, "cohere2", sliding_window=24, layer_types=["sliding_attention", "full_attention"])
    cfg = of("aya_vision", "AyaVisionConfig")(text_config=text, vision_config=vision_config("siglip_vision_model", vision_use_head=False), downsample_factor=2,
                                              image_token_index=tok.convert_tokens_to_ids("<|IMG_PATCH|>"))
    return cfg, proc


def mllama():
    "Cross-attention: the processor's mask of [batch, token, picture, tile] grows with the answer."
    tok = tokenizer(["<|image|>", "<|python_tag|>"], bos="<|begin_of_text|>", eos="<|eot_id|>")
    text = text_config(tok, "mllama_text_model", num_hidden_layers=3, cross_attention_layers=[1], vocab_size=len(tok) + 8,
                       rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    vision = dict(hidden_size=16, num_hidden_layers=2, num_global_layers=1, attention_heads=2, intermediate_size=32, vision_output_dim=32, image_size=32, patch_size=8,
                  max_num_tiles=4, intermediate_layers_indices=[0], supported_aspect_ratios=[[1, 1], [1, 2], [2, 1], [2, 2], [1, 3], [3, 1], [1, 4], [4, 1]])
    cfg = of("mllama", "MllamaConfig")(text_config=text, vision_config=vision, image_token_index=tok.convert_tokens_to_ids("<|image|>"))
    images = of("mllama", "MllamaImageProcessor")(size=SQUARE, max_image_tiles=4)
    return cfg, of("mllama", "MllamaProcessor")(images, tok, chat_template=template(end="<|eot_id|>", image="<|image|>", bos="{{ bos_token }}"))


def got_ocr2():
    "Its processor takes pictures as one list only."
    tok = tokenizer(["<img>", "</img>", "<imgpad>"])
    vision = dict(hidden_size=16, output_channels=32, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16, window_size=2, global_attn_indexes=[0],
                  mlp_dim=32, initializer_range=.02)
    cfg = of("got_ocr2", "GotOcr2Config")(text_config=text_config(tok), vision_config=vision, image_token_index=tok.convert_tokens_to_ids("<imgpad>"), image_seq_length=1)
    kind = of("got_ocr2", "GotOcr2Processor")
    kind.num_image_tokens = 1  # 256 for the real model; nothing else in this file uses the class
    return cfg, kind(of("got_ocr2", "GotOcr2ImageProcessor")(size={"height": 64, "width": 64}), tok, chat_template=template(image="<img><imgpad></img>"))


def chameleon():
    "Computes logits at all positions or not at all, and turns pictures into tokens of its own vocabulary."
    tok = tokenizer(bos="<s>", eos="</s>", image_token="<image>", boi_token="<racm3:break>", eoi_token="<eoss>")
    names = ["IMGIMG" + "".join("ABCDEFGHIJ"[int(c)] for c in str(i)) + "Z" for i in range(16)]
    known = {n: len(tok) + i for i, n in enumerate(names)} | {"<image>": tok.convert_tokens_to_ids("<image>")}
    tok.add_tokens(names)
    text = {k: v for k, v in text_config(tok).items() if k != "model_type"}
    vq = dict(embed_dim=8, num_embeddings=16, latent_channels=8, resolution=32, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1)
    cfg = of("chameleon", "ChameleonConfig")(**text, vq_config=vq, vocabulary_map=known)
    proc = of("chameleon", "ChameleonProcessor")(of("chameleon", "ChameleonImageProcessor")(size={"shortest_edge": 32}, crop_size=SQUARE), tok, image_seq_length=256)
    proc.chat_template = tok.chat_template = template()
    return cfg, proc


def qwen3_5():
    "Layers of linear attention, which remember masked columns unless they are padding."
    tok, images, videos, chat = qwen_parts(16)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0], "partial_rotary_factor": .25, "mrope_interleaved": True}
    text = text_config(tok, "qwen3_5_text", head_dim=16, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
                       layer_types=["linear_attention", "full_attention"], rope_parameters=rope)
    vision = dict(depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=32, num_position_embeddings=64)
    return of("qwen3_5", "Qwen3_5Config")(text_config=text, vision_config=vision, **qwen_vision_ids(tok)), of("qwen3_vl", "Qwen3VLProcessor")(images, tok, videos, chat_template=chat)


def blip_2():
    "Learned positions, separate embeddings for generation, and layers that are named otherwise."
    from transformers import BlipImageProcessor
    tok = tokenizer(["<image>"], bos="<s>", eos="</s>")
    vision = {k: v for k, v in vision_config("").items() if k != "model_type"} | {"initializer_range": .02}
    former = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, encoder_hidden_size=32, hidden_dropout_prob=0.,
                  attention_probs_dropout_prob=0.)
    text = dict(model_type="opt", vocab_size=len(tok) + 16, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512,
                word_embed_proj_dim=32, dropout=0., pad_token_id=tok.pad_token_id, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id)
    cfg = of("blip_2", "Blip2Config")(vision_config=vision, qformer_config=former, text_config=text, num_query_tokens=4, image_token_index=tok.convert_tokens_to_ids("<image>"))
    proc = of("blip_2", "Blip2Processor")(BlipImageProcessor(size=SQUARE), tok, num_query_tokens=4)
    proc.chat_template = tok.chat_template = template(image="")
    return cfg, proc


def kosmos2():
    "Its tokens swallow what stands before them: to be refused."
    tok = tokenizer(["<image>", "</image>"], bos="<s>", eos="</s>")
    tok.unk_token = "<|endoftext|>"
    proc = of("kosmos2", "Kosmos2Processor")(of("clip", "CLIPImageProcessor")(size={"shortest_edge": 32}, crop_size=SQUARE), tok, num_patch_index_tokens=4)
    proc.chat_template = tok.chat_template = template()
    text = dict(vocab_size=len(tok) + 16, max_position_embeddings=512, embed_dim=32, layers=2, ffn_dim=48, attention_heads=4, pad_token_id=tok.pad_token_id)
    vision = {k: v for k, v in vision_config("").items() if k != "model_type"}
    return of("kosmos2", "Kosmos2Config")(text_config=text, vision_config=vision, latent_query_num=4), proc


UNLISTED = {f.__name__: f for f in (mllama, got_ocr2, chameleon, qwen3_5, blip_2, kosmos2)}  # not among TESTED_FAMILIES: checked whenever they are opened
FAMILIES = {f.__name__: f for f in (qwen2_5_vl, qwen2_vl, smolvlm, idefics3, idefics2, llava_onevision, llava_next, llava, internvl, gemma3, paligemma, mistral3,
                                    aya_vision, glm4v)}
NAMES = ["qwen3_vl", *FAMILIES]


def backbone(name, folder, seed=1):
    "Save a random model of a family with its processor."
    if name == "qwen3_vl": return tiny.backbone(folder)
    cfg, proc = (FAMILIES | UNLISTED)[name]()
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(cfg)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1 and not p.any(): p.normal_(0, .1)  # Gemma's projector starts at zero and would see nothing
            elif p.ndim > 1: p.mul_(4)  # at this width the stock initialisation gives logits near zero; make differences visible
    model.generation_config.eos_token_id = proc.tokenizer.eos_token_id
    model.save_pretrained(folder)
    proc.save_pretrained(folder)
    return Path(folder)
