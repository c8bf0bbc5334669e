"Two processes train as one does, whatever splits the model; runs survive signals, damage and another number of processes."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import tiny
import two
from safetensors.torch import load_file

from transformers import AutoModelForImageTextToText

from r3nb.backends import check_seal
from r3nb.core import CheckpointError, ConfigError
from r3nb.export import main as export_main
from r3nb.model import R3Model
from r3nb.train import TrainConfig, newest_checkpoint, replay, train

HERE = Path(__file__).parent
ROOT = HERE.parent
BACKENDS = ("ddp", "fsdp", "deepspeed")
NAMES = ("plain", "accum", "full", "flags", "text")
ENV = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    "A small world with its index and a backbone, for all runs."
    folder = tmp_path_factory.mktemp("dist")
    world = tiny.world(folder)
    world.folder, world.paths = folder, dict(model_name=str(tiny.backbone(folder / "backbone")), train_jsonl=str(world.jsonl), val_jsonl=str(world.jsonl),
                                             image_root=str(world.root), index_dir=str(world.index))
    return world


@pytest.fixture(scope="session")
def runs(place):
    "Backend -> folder of its runs; each backend is started once, by the first test that asks."
    @cache
    def of(backend):
        out = place.folder / backend
        zero = str(ROOT / "configs" / ("deepspeed_zero3_offload.json" if backend == "offload" else "deepspeed_zero3.json"))
        names = {"none": NAMES, "offload": ("plain",)}.get(backend, (*NAMES, "resume", "moved", "nan"))
        one = None if backend == "none" else of("none")
        job = {"paths": place.paths, "out": str(out), "names": names, "one": str(one), "backend": "deepspeed" if backend == "offload" else backend,
               "deepspeed_config": zero if backend in ("deepspeed", "offload") else ""}
        (file := place.folder / f"{backend}.json").write_text(json.dumps(job))
        start = [sys.executable] if backend == "none" else [*TORCHRUN, "2"]
        done = subprocess.run([*start, str(HERE / "two.py"), str(file)], env=ENV, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return out
    return of


def bits(folder, skip=()): return {f"{f.name}/{k}": v for f in sorted(Path(folder).glob("*.safetensors")) if f.stem not in skip for k, v in load_file(f).items()}


def furthest(a, b):
    "The largest difference between the tensors of two checkpoints, which have the same names."
    a, b = bits(a), bits(b)
    assert a.keys() == b.keys()
    return max((a[k].float() - b[k].float()).abs().max().item() for k in a if a[k].numel())


def facts(folder): return json.loads((folder / "facts.json").read_text())


def flip(path, at=-1):
    "Change one bit of a file."
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_equal_one(runs, backend, name):
    "All trained tensors, the teacher's and the optimizer's: LoRA, accumulation, full fine-tuning, switched-off modules, a process without pictures."
    one, many = (newest_checkpoint(runs(b) / name) for b in ("none", backend))
    assert one.name == many.name and furthest(one, many) < 1e-5
    assert any(k.startswith("teacher") for k in bits(many)) == (name != "flags") and any("exp_avg_sq/" in k for k in bits(many))


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_are_in_parts(runs, backend):
    seen, one = facts(runs(backend) / "full"), facts(runs("none") / "full")
    assert seen["backend"] == backend and seen["parameters"] == one["parameters"]
    if backend == "ddp": assert seen["dtensors"] == seen["ds"] == 0 and seen["parts"] == one["parts"]
    else: assert seen["dtensors" if backend == "fsdp" else "ds"] == one["parameters"] and seen["parts"] < .55 * one["parts"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_resume_is_bit_equal(runs, backend):
    "Interrupted after step 4, and gone on with from step 3."
    assert furthest(*(newest_checkpoint(runs(backend) / n) for n in ("plain", "resume"))) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_number_of_processes_goes_on(runs, backend):
    "A run of one process is taken over by two after step 3."
    taken = runs(backend) / "moved" / "checkpoints"
    assert furthest(taken / "step_3", runs("none") / "plain" / "checkpoints" / "step_3") == 0
    assert furthest(taken / "step_6", runs("none") / "plain" / "checkpoints" / "step_6") < 1e-5


def test_one_process_takes_over_a_run_of_two(runs, place, tmp_path):
    "With the same samples in a step; with fewer it is refused."
    shutil.copytree(runs("deepspeed") / "plain", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_6")
    cfg = TrainConfig(**two.BASE | place.paths | two.SCENARIOS["plain"], batch_size=2, output_dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"samples of a step .* 4 -> 2: change batch_size or grad_accum"): train(cfg)
    cfg.grad_accum = 2
    assert furthest(train(cfg), runs("deepspeed") / "plain" / "checkpoints" / "step_6") < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_and_generation_on_parts(runs, backend):
    rows = [[json.loads(line) for line in open(runs(b) / "plain" / "history.jsonl")] for b in ("none", backend)]
    val = [[r["val_loss"] for r in rs if "val_loss" in r] for rs in rows]
    assert len(val[0]) == 2 and val[1] == pytest.approx(val[0], abs=1e-4)
    for key in ("loss", "loss_ce", "loss_align", "gate_self", "conf_text"): assert [r[key] for r in rows[1] if "loss" in r] == pytest.approx([r[key] for r in rows[0] if "loss" in r], abs=1e-4)
    assert facts(runs(backend) / "plain")["texts"] == facts(runs("none") / "plain")["texts"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_that_is_not_finite_stops_all_and_can_be_replayed(runs, backend):
    said = facts(runs(backend) / "nan")["said"]
    assert "loss is nan at step 2 (ce nan" in said and "demo_train_" in said and "replay" in said
    failed = json.loads((runs(backend) / "nan" / "failed_step_2" / "batch_0.json").read_text())
    again = replay(runs(backend) / "nan" / "failed_step_2")
    assert failed["parts"].pop("ce") == "nan" and {k: again[k] for k in failed["parts"]} == pytest.approx(failed["parts"], abs=1e-5) and again["ce"] > 0


@pytest.mark.slow
def test_offload(runs): assert furthest(*(newest_checkpoint(runs(b) / "plain") for b in ("none", "offload"))) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpoints_are_small_and_open_on_one_process(runs, place, backend):
    last = newest_checkpoint(runs(backend) / "plain")
    backbone = {k for f in Path(place.paths["model_name"]).glob("*.safetensors") for k in load_file(f)}
    assert not any(name.endswith(tuple(backbone)) for name in bits(last) if "lora_" not in name) and not list(last.glob("*.p[tk]*")) and check_seal(last)["processes"] == 2
    model = R3Model.load(last)
    for name, p in model.lora_parameters().items(): assert (p == bits(last)[f"adapter_model.safetensors/{name}"]).all()


def test_export_of_runs_in_parts(runs, tmp_path):
    "An adapter and a whole model of LoRA, and a whole model of full fine-tuning, as transformers opens it."
    lora, full = (newest_checkpoint(runs("fsdp") / n) for n in ("plain", "full"))
    for words in (["--checkpoint_dir", str(lora), "--out", str(tmp_path / "a")], ["--checkpoint_dir", str(full), "--full", "--out", str(tmp_path / "f")]): export_main(words)
    assert {f.name for f in (tmp_path / "a").iterdir()} == {".r3nb.json", "README.md", "adapter_config.json", "adapter_model.safetensors", "checkpoint.json", "modules.safetensors", "r3_config.json"}
    R3Model.load(tmp_path / "a")
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "f").state_dict()
    trained = load_file(full / "backbone.safetensors")
    assert len(trained) > 50 and all((whole[k] == v.half()).all() for k, v in trained.items())
    R3Model.load(tmp_path / "f" / "r3", tmp_path / "f")


def test_a_flipped_bit_is_named(runs, place, tmp_path):
    "The run stops and says which file; it goes on from the checkpoint before only if told to, and ends the same."
    shutil.copytree(runs("none") / "plain", tmp_path / "run")
    cfg = TrainConfig(**two.BASE | place.paths | two.SCENARIOS["plain"], batch_size=4, output_dir=str(tmp_path / "run"))
    flip(tmp_path / "run" / "checkpoints" / "step_6" / "optimizer.safetensors")
    with pytest.raises(CheckpointError, match=r"step_6/optimizer.safetensors is damaged.*--allow_previous"): train(cfg)
    cfg.allow_previous = True
    assert furthest(train(cfg), runs("none") / "plain" / "checkpoints" / "step_6") == 0
    flip(tmp_path / "run" / "checkpoints" / "step_6" / "modules.safetensors")
    with pytest.raises(CheckpointError, match="modules.safetensors is damaged"): R3Model.load(tmp_path / "run" / "checkpoints" / "step_6")


def words(place, out, **more):
    "The command line of the scenario `plain` on two processes."
    options = two.BASE | place.paths | two.SCENARIOS["plain"] | dict(batch_size=2, output_dir=str(out)) | more
    return [w for k, v in options.items() for w in (f"--{k}", str(v))]


def wait_for(run, ready, seconds=120):
    until = time.time() + seconds
    while time.time() < until and run.poll() is None and not ready(): time.sleep(.02)
    assert ready(), "the run ended before it was ready"


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(runs, place, tmp_path):
    command = [*TORCHRUN, "2", "-m", "r3nb.train", "--backend", "fsdp", *words(place, tmp_path, save_every=100, num_workers=1)]
    run = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    wait_for(run, lambda: (tmp_path / "history.jsonl").is_file())
    os.killpg(run.pid, signal.SIGTERM)
    said = run.communicate(timeout=120)[0]
    last = newest_checkpoint(tmp_path)
    assert last is not None and int(last.name[5:]) < 6 and run.returncode != 0, said[-3000:]
    assert "stopped by a signal" in said and not list(last.parent.glob(".tmp-*"))
    subprocess.run(command, env=ENV, check=True, capture_output=True, timeout=300)
    assert furthest(newest_checkpoint(tmp_path), newest_checkpoint(runs("fsdp") / "plain")) == 0


@pytest.mark.slow
def test_sigkill_loses_little(runs, place, tmp_path):
    "The whole family of DeepSpeed's launcher dies at once; the same command ends with the bits of an undisturbed run."
    launcher = shutil.which("deepspeed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    command = [launcher, "--num_gpus=2", "--module", "r3nb.train", "--backend", "deepspeed", "--deepspeed_config", str(ROOT / "configs" / "deepspeed_zero3.json"),
               *words(place, tmp_path, save_every=1)]
    run = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(run, lambda: newest_checkpoint(tmp_path))
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    time.sleep(.5)
    before = int(newest_checkpoint(tmp_path).name[5:])
    steps = [json.loads(line)["step"] for line in open(tmp_path / "history.jsonl") if line.endswith("}\n")]
    assert before >= max(steps) - 1
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert furthest(newest_checkpoint(tmp_path), newest_checkpoint(runs("deepspeed") / "plain")) == 0


@pytest.mark.slow
def test_a_wrong_start_is_refused_by_all_processes(place, tmp_path):
    "An error that only the first process can see ends the second one too, with a sentence, at once."
    (tmp_path / "run.json").write_text('{"options": {}}')
    done = subprocess.run([*TORCHRUN, "2", "-m", "r3nb.train", *words(place, tmp_path)], env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "holds a run with other options" in done.stderr
