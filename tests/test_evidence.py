"The evidence cache: what training reads from it is what it would have looked up, and a wrong cache is refused."
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

import r3nb.evidence as evidence
from r3nb.core import ConfigError, DataError, read_json
from r3nb.indices import EvidenceIndex
from r3nb.train import EvidenceConfig, TrainConfig, TrainSet, evidence_main, open_store, prepare_evidence, train


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    torch.set_num_threads(1)
    world = tiny.world(folder)
    world.backbone, world.folder, world.opened = tiny.backbone(folder / "backbone"), folder, EvidenceIndex.load(world.index)
    return world


@pytest.fixture
def cfg(place, tmp_path):
    return TrainConfig(model_name=str(place.backbone), train_jsonl=str(place.jsonl), image_root=str(place.root), index_dir=str(place.index), output_dir=str(tmp_path / "run"),
                       evidence_cache=str(tmp_path / "cache"), max_steps=4, batch_size=3, warmup_steps=1, save_every=2, log_every=1, num_workers=0, bottleneck=16, heads=2,
                       n_prefix=2, n_memory=2, n_latent=1, top_k=2, distract=.4, blank=.9, disable_teacher=True)


def cache_options(cfg, **more): return EvidenceConfig(**asdict(cfg), **{"levels": [.3, .8], "variants": 2} | more)


def shown(example):
    return [(p.image_id, p.row, p.channel) for p in example.pages], example.record.sample_id, example.corrupted.pseudo_text, example.corrupted.image.tobytes()


def test_what_is_read_is_what_would_have_been_looked_up(cfg, place, monkeypatch):
    "Own evidence, a stranger's, lost text: the same pages, scores and vectors, without encoding anything"
    for r in place.records: r.meta["entity"] = r.sample_id
    store = open_store(replace(cfg, evidence_cache=str(prepare_evidence(cache_options(cfg)))), place.opened, 8)
    config = cfg.model_config(place.opened)
    cached = TrainSet(replace(cfg, max_steps=30), place.records, place.opened, config, store=store)

    class Live(TrainSet):
        "The same levels and seeds, looked up at the moment"
        def level(self, p): return cached.level(p)
        def damage_seed(self, p): return cached.damage_seed(p)
    live = Live(replace(cfg, max_steps=30), place.records, place.opened, config)
    want = [live[p] for p in range(60)]
    for e in place.opened.encoders.values(): monkeypatch.setattr(e, "encode", lambda items: pytest.fail("a cache was given and something was encoded"))
    got = [cached[p] for p in range(60)]
    strangers, blanks = [cached.stranger(p) for p in range(60)], [not e.corrupted.pseudo_text for e in got]
    assert 10 < sum(s is not None for s in strangers) < 40 and sum(blanks) > 5 and {cached.variant(p) for p in range(60)} == {0, 1}
    assert {cached.level(p) for p in range(60)} == {0, .3, .8}
    for a, b in zip(want, got, strict=True):
        assert shown(a) == shown(b)
        np.testing.assert_allclose(a.scores, b.scores, atol=2e-5)
        np.testing.assert_allclose(a.own, b.own, atol=1e-6)
        assert a.vectors.keys() == b.vectors.keys() and all((a.vectors[k] == b.vectors[k]).all() for k in a.vectors)


def test_training_with_a_cache_resumes_with_equal_bits(cfg, tmp_path):
    prepare_evidence(cache_options(cfg))
    bits = lambda folder: {f.name: load_file(f) for f in sorted(folder.glob("*.safetensors"))}
    whole = bits(train(replace(cfg, num_workers=1)))
    two = replace(cfg, output_dir=str(tmp_path / "two"))
    last = train(two)
    assert all(torch.equal(whole[f][k], v) for f, ts in bits(last).items() for k, v in ts.items())
    other = prepare_evidence(cache_options(replace(cfg, evidence_cache=str(tmp_path / "other")), levels=[.5]))
    with pytest.raises(ConfigError, match="holds a run with other options .*evidence_cache"): train(replace(two, evidence_cache=str(other)))
    with pytest.raises(ConfigError, match="holds a run with other options .*evidence_cache"): train(replace(two, evidence_cache=""))


def test_levels_stay_below_the_maximum(cfg, place):
    store = open_store(replace(cfg, evidence_cache=str(prepare_evidence(cache_options(cfg, levels=[.2, .4, .6, .8, 1.0], variants=1)))), place.opened, 8)
    for top in (.5, .6, .8):
        data = TrainSet(replace(cfg, max_steps=60, max_corruption=top), place.records, place.opened, cfg.model_config(place.opened), store=store)
        found = {data.level(p) for p in range(180)}
        assert max(found) == max(v for v in store.grid.levels if v <= top) and 0 in found


@pytest.mark.parametrize("change, says", [
    (dict(seed=3), "seed 0, not 3"), (dict(top_k=3), "top_k 2, not 3"), (dict(corrupt_text_target="question"), "text_target 'pseudo_text', not 'question'")])
def test_a_cache_of_another_training_is_refused(cfg, place, change, says):
    prepare_evidence(cache_options(cfg, variants=1))
    with pytest.raises(ConfigError, match=f"was made for something else .*{says}"): train(replace(cfg, **change))
    with pytest.raises(ConfigError, match=f"holds evidence for something else .*{says}"): prepare_evidence(cache_options(replace(cfg, **change), variants=1))


def test_other_records_another_index_fewer_channels(cfg, place, tmp_path):
    prepare_evidence(cache_options(replace(cfg, disable_image_retrieval=True), variants=1))
    train(replace(cfg, disable_image_retrieval=True, max_steps=1, save_every=1, output_dir=str(tmp_path / "text")))
    with pytest.raises(ConfigError, match="nothing from the image channel"): train(cfg)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(place.jsonl.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(ConfigError, match="other records"): train(replace(cfg, disable_image_retrieval=True, train_jsonl=str(few)))
    smaller = EvidenceIndex.build(place.records[:6], place.root, tmp_path / "smaller", "minilm", str(place.clip))
    with pytest.raises(ConfigError, match="other documents in the index"): train(replace(cfg, disable_image_retrieval=True, index_dir=str(smaller.folder)))


def test_unfinished_and_damaged_caches(cfg, place, monkeypatch, capsys):
    monkeypatch.setattr(evidence, "BLOCK", 3)
    with pytest.raises(DataError, match="evidence_cache .*: no such folder"): train(cfg)
    Path(cfg.evidence_cache).mkdir()
    with pytest.raises(ConfigError, match="is not an evidence cache .no evidence.json.; make it with r3nb_evidence"): train(cfg)
    Path(cfg.evidence_cache).rmdir()
    folder = prepare_evidence(cache_options(cfg, variants=1))
    blocks = sorted(folder.glob("block_*.npy"))
    assert [np.load(b).shape for b in blocks] == [(3, 4, 1), (3, 4, 1), (2, 4, 1)]
    kept = blocks[1].read_bytes()
    blocks[1].unlink()
    with pytest.raises(ConfigError, match="not finished: 1 of 3 blocks are missing"): open_store(cfg, place.opened, 8)
    first = blocks[0].stat().st_mtime_ns
    prepare_evidence(cache_options(cfg, variants=1))
    assert blocks[1].read_bytes() == kept and blocks[0].stat().st_mtime_ns == first     # made again with the same bytes, the others left alone
    blocks[2].write_bytes(kept[:-40])
    evidence._mapped.cache_clear()
    with pytest.raises(DataError, match="block_000002.npy: not readable"): open_store(cfg, place.opened, 8)
    blocks[2].write_bytes(kept)
    evidence._mapped.cache_clear()
    with pytest.raises(DataError, match="block_000002.npy: holds .3, 4, 1. findings of another form"): open_store(cfg, place.opened, 8)
    evidence._mapped.cache_clear()


@pytest.mark.slow
def test_options_of_the_command(cfg, place, capsys, tmp_path):
    words = [f"--{k}={v}" for k, v in asdict(cfg).items() if isinstance(v, (str, int, float)) and not isinstance(v, bool) and v != ""]
    evidence_main([*words, "--levels", "0.5", "--disable_teacher"])
    assert "evidence: " in capsys.readouterr().out and read_json(Path(cfg.evidence_cache) / "evidence.json")["levels"] == [0.0, 0.5]
    for more, says in ((["--levels", "2"], "expected numbers from 0 to 1"), (["--variants", "0"], "variants is 0"), (["--workers", "0"], "workers is 0"),
                       (["--evidence_cache", ""], "evidence_cache is empty"), (["--evidence_cache", str(place.root)], "holds files that are no evidence cache"),
                       (["--disable_text_retrieval", "--disable_image_retrieval"], "sees no evidence")):
        with pytest.raises(SystemExit): evidence_main([*words, *more])
        assert says in capsys.readouterr().err
    with pytest.raises(ConfigError, match="this training sees no evidence"): replace(cfg, train_mode="lora").check()


@pytest.mark.slow
def test_killed_and_filled_again_by_two_processes(cfg, place, tmp_path):
    "kill -9 while filling; the second start keeps whole blocks, and two processes write the bytes of one"
    records = [json.loads(l) for l in place.jsonl.read_text().splitlines()]
    many = tmp_path / "many.jsonl"
    many.write_text("".join(json.dumps(r | {"sample_id": f"{r['sample_id']}_{k}"}) + "\n" for k in range(20) for r in records))
    cfg = replace(cfg, train_jsonl=str(many))
    words = [f"--{k}={v}" for k, v in asdict(cfg).items() if isinstance(v, (str, int, float)) and not isinstance(v, bool) and v != ""]
    run = subprocess.Popen([sys.executable, "-c", "import sys; from r3nb.train import evidence_main; evidence_main(sys.argv[1:])", *words, "--levels=0.5"],
                           env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    first, until = evidence.block_file(cfg.evidence_cache, 0), time.time() + 200
    while not first.exists() and run.poll() is None and time.time() < until: time.sleep(.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    made = first.stat().st_mtime_ns
    assert len(list(Path(cfg.evidence_cache).glob("block_*.npy"))) < 3
    prepare_evidence(cache_options(cfg, levels=[.5], variants=1, workers=2))
    assert first.stat().st_mtime_ns == made
    alone = prepare_evidence(cache_options(replace(cfg, evidence_cache=str(tmp_path / "alone")), levels=[.5], variants=1))
    files = [p.name for p in sorted(alone.glob("block_*.npy"))]
    assert len(files) == 3 and all((alone / f).read_bytes() == (Path(cfg.evidence_cache) / f).read_bytes() for f in files)
