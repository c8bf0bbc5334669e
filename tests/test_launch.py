"The launcher: output stays readable, failures say why, an interruption leaves time to save and leaves nothing behind."
import io
import os
import queue
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import tiny
import torch
from jupyter_client import KernelManager
from safetensors.torch import load_file

from r3nb.core import ConfigError, LaunchError, R3Error, read_json
from r3nb.launch import Screen, command, launch, option_words
from r3nb.mini import backbone_dir
from r3nb.study import code_cells, code_of

ROOT = Path(__file__).parent.parent
STAGE = ROOT/"nbs/stages/3_train.ipynb"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    "Write a module that can be launched; gives its name"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    def write(code, name="fake"):
        (tmp_path/f"{name}.py").write_text(textwrap.dedent(code))
        return name
    return write


def wait_for(test, seconds=120):
    "Wait until something holds; fail when it never does"
    until = time.time() + seconds
    while time.time() < until:
        if found := test(): return found
        time.sleep(.05)
    pytest.fail(f"waited {seconds} s in vain")


def alive(pid):
    try: return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False


def numbers(path): return path.exists() and path.read_text().endswith("\n") and path.read_text().split()


# output --------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 1000])
def test_output_is_the_same_wherever_it_is_cut(size):
    text, stream = "one\r\ntwo\n\n\r 10%|#\r 20%|##\r 30%|###\nlast", io.StringIO()
    screen = Screen(stream, every=1000)
    screen.shown = screen.begun = time.monotonic()
    for i in range(0, len(text), size): screen.write(text[i:i + size])
    assert list(screen.lines) == ["one", "two", "", " 30%|###"] and screen.now == "last"
    assert stream.getvalue() == "one\ntwo\n\n 30%|###\n"


def test_updates_become_rare_and_the_last_is_shown(monkeypatch):
    "Ten hours of a bar that speaks every five seconds"
    clock = [0.]
    monkeypatch.setattr("r3nb.launch.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    screen = Screen(stream)
    for i in range(7200):
        clock[0] += 5
        screen.write(f"\rtraining: {i}/7200")
    screen.write("\rtraining: 7200/7200\n")
    assert 200 < stream.getvalue().count("\r") < 700 and stream.getvalue().endswith("\rtraining: 7200/7200\n")


def test_a_shorter_state_covers_a_longer_one(monkeypatch):
    stream = io.StringIO()
    screen = Screen(stream, every=0)
    screen.write("\ra long state")
    screen.write("\rshort\n")
    assert stream.getvalue().split("\r")[-1] == "short       \n" and list(screen.lines) == ["short"]


def test_real_bars_and_other_encodings(fake, capsys):
    name = fake("""
        import sys
        from r3nb.core import progress
        for _ in progress(range(3000), "working"): pass
        sys.stdout.buffer.write("größer ✓\\n".encode()); sys.stdout.buffer.write(b"broken \\xff byte\\n")
        """)
    launch({}, name)
    out = capsys.readouterr().out
    assert "100%" in out and "3000/3000" in out and "größer ✓" in out and "broken \ufffd byte" in out and len(out.splitlines()) < 20


# failures ------------------------------------------------------------------------------------------------------------------------------

def test_failure_gives_code_reason_and_last_lines(fake):
    name = fake("import sys\nfor i in range(300): print('line', i)\nprint('error: t.jsonl:3: no answers; drop the row', file=sys.stderr)\n"
                "for i in range(50): print('noise', i)\nsys.exit(2)")
    with pytest.raises(LaunchError) as e: launch({}, name)
    said = str(e.value)
    assert said.startswith("fake ended with exit code 2\nerror: t.jsonl:3: no answers; drop the row\nits last lines:")
    assert said.endswith("  noise 49") and "noise 34" not in said and issubclass(LaunchError, R3Error)


def test_a_bug_shows_its_trace(fake):
    with pytest.raises(LaunchError, match=r"(?s)exit code 1.*ZeroDivisionError: division by zero"): launch({}, fake("print('x')\n1/0"))


@pytest.mark.parametrize("sig, says", [(9, "was killed by SIGKILL, most often because the machine ran out of memory"), (11, "was killed by SIGSEGV")])
def test_killed_child(fake, sig, says):
    with pytest.raises(LaunchError, match=says): launch({}, fake(f"import os\nprint('begun', flush=True)\nos.kill(os.getpid(), {sig})"))


def test_what_cannot_be_launched():
    with pytest.raises(ConfigError, match="unknown backend 'fdsp'.*did you mean 'fsdp'"): command(backend="fdsp")
    with pytest.raises(ConfigError, match="processes is 0"): command(backend="ddp", processes=0)
    with pytest.raises(ConfigError, match="processes is 4 with backend none"): command(backend="none", processes=4)
    with pytest.raises(LaunchError, match="(?s)No module named"): launch({}, "r3nb.no_such_module")


def test_deepspeed_where_it_is_not_and_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("r3nb.launch.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs its package; install it with: pip install 'r3nb\[deepspeed\]'"): command(backend="deepspeed")
    monkeypatch.setattr("r3nb.launch.importlib.util.find_spec", lambda name: name)
    words = command(backend="deepspeed", processes=8)
    assert words[2:5] == ["deepspeed.launcher.runner", "--no_local_rank", "--num_gpus=8"] and words[-3:] == ["--module", "r3nb.train", "--backend=deepspeed"]


def test_options_arrive_as_they_were(fake):
    name = fake("import json, sys\njson.dump(sys.argv[1:], open('argv.json', 'w'))")
    launch({"a": True, "b": False, "c": [1, "x y"], "d": "", "e": None, "f": "-1 'q'\n$HOME"}, name)
    assert read_json("argv.json") == ["--a", "--no_b", "--c=1,x y", "--d=", "--f=-1 'q'\n$HOME"]
    assert option_words({"lr": 1e-5}) == ["--lr=1e-05"]


def test_several_processes_fail_as_one(fake):
    "Behind torchrun: the rank's own sentence comes first"
    name = fake("import os, sys, time\nif os.environ['RANK'] == '1': sys.exit('error: rank 1 found a damaged record')\ntime.sleep(60)")
    begun = time.time()
    with pytest.raises(LaunchError, match="^fake ended with exit code 1\nerror: rank 1 found a damaged record\nits last lines"): launch({}, name, "ddp", 2)
    assert time.time() - begun < 50


# stopping ------------------------------------------------------------------------------------------------------------------------------

CALLER = "import sys, r3nb.launch as l\nl.launch({{}}, {name!r}, {backend!r}, {n}, grace={grace})"
POLITE = """
    import os, signal, subprocess, sys, time
    def save(*_):
        print("saving", flush=True) # nobody reads this when the notebook was killed
        time.sleep(1)
        open("saved.txt", "a").write(f"{os.environ.get('RANK', 0)}\\n")
        sys.exit(0)
    signal.signal(signal.SIGTERM, save)
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    open("pids.txt", "a").write(f"{os.getpid()} {worker.pid}\\n")
    print("ready", flush=True)
    time.sleep(120)
    """
DEAF = POLITE.replace("signal.signal(signal.SIGTERM, save)", "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)")


def begin(name, backend="auto", n=1, grace=30, **kw):
    "A process that launches, as a kernel would"
    return subprocess.Popen([sys.executable, "-c", CALLER.format(name=name, backend=backend, n=n, grace=grace)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)


@pytest.mark.parametrize("backend, n", [("auto", 1), ("ddp", 2)])
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGKILL], ids=["interrupt", "kill"])
def test_training_saves_when_its_notebook_is_interrupted_or_killed(fake, tmp_path, backend, n, sig):
    caller = begin(fake(POLITE), backend, n)
    pids = wait_for(lambda: (found := numbers(tmp_path/"pids.txt")) and len(found) == 2 * n and found)
    caller.send_signal(sig)
    wait_for(lambda: sorted(numbers(tmp_path/"saved.txt") or []) == [str(i) for i in range(n)])
    wait_for(lambda: not any(map(alive, pids)))                     # nothing is left, data workers included
    out = caller.communicate()[0]
    if sig == signal.SIGINT: assert "waiting up to 30 s for the checkpoint" in out and "KeyboardInterrupt" in out and "stopped; run again" in out


@pytest.mark.parametrize("backend, n", [("auto", 1), ("ddp", 2)])
def test_a_child_that_does_not_listen_is_killed(fake, tmp_path, backend, n):
    caller = begin(fake(DEAF), backend, n, grace=1)
    pids = wait_for(lambda: (found := numbers(tmp_path/"pids.txt")) and len(found) == 2 * n and found)
    caller.send_signal(signal.SIGINT)
    wait_for(lambda: not any(map(alive, pids)))
    assert "KeyboardInterrupt" in caller.communicate()[0] and not (tmp_path/"saved.txt").exists()


def test_a_second_interrupt_does_not_wait(fake, tmp_path):
    caller = begin(fake(DEAF), grace=60)
    pids, begun = wait_for(lambda: numbers(tmp_path/"pids.txt")), time.time()
    caller.send_signal(signal.SIGINT)
    for line in caller.stdout:
        if "interrupt again" in line: break
    caller.send_signal(signal.SIGINT)
    wait_for(lambda: not any(map(alive, pids)))
    assert "KeyboardInterrupt" in caller.communicate()[0] and time.time() - begun < 55


def test_workers_outlive_no_killed_launcher(fake, tmp_path):
    "The child is killed by the system: its workers end as well, and the error says so"
    caller = begin(fake(POLITE))
    pids = wait_for(lambda: numbers(tmp_path/"pids.txt"))
    os.kill(int(pids[0]), signal.SIGKILL)
    assert "was killed by SIGKILL" in caller.communicate(timeout=120)[0] and caller.returncode == 1
    wait_for(lambda: not any(map(alive, pids)))


def test_the_child_keeps_the_lock_of_the_run(fake, tmp_path):
    "Whoever holds the study's lock passes it on, and nothing else"
    lock = open(tmp_path/"lock", "w")
    os.set_inheritable(lock.fileno(), True)
    name = fake("import os\nopen('open.txt', 'w').write(' '.join(os.path.basename(os.readlink(f'/proc/self/fd/{f}')) for f in os.listdir('/proc/self/fd') "
                "if os.path.exists(f'/proc/self/fd/{f}')))")
    with open(tmp_path/"private", "w"): launch({}, name)
    lock.close()
    assert "lock" in (tmp_path/"open.txt").read_text().split() and "private" not in (tmp_path/"open.txt").read_text()


# the real module and the real notebook --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    tiny.prepared(folder)
    return folder


def bits(folder): return {f"{f.name}/{k}": v for f in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(f).items()}


@pytest.mark.slow
def test_a_launched_training_has_the_bits_of_one_in_this_process(study, tmp_path, monkeypatch, capsys):
    from r3nb.train import TrainConfig, train
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    torch.set_num_threads(1)
    options = dict(model_name=str(backbone_dir()), train_jsonl=str(study/"1_prepare/train.jsonl"), image_root=str(study/"0_world/raw"), index_dir=str(study/"2_index/index"),
                   max_steps=2, batch_size=2, warmup_steps=1, distract=.5, blank=.5, lora_dropout=.1, log_every=1, num_workers=1, threads=1)
    here = bits(train(TrainConfig(**options, output_dir=str(tmp_path/"here"))))
    launch(options | {"output_dir": tmp_path/"there"})
    there = bits(tmp_path/"there/checkpoints/step_2")
    assert here.keys() == there.keys() and all(torch.equal(here[k], there[k]) for k in here) and len(here) > 100
    assert "trained: " in capsys.readouterr().out
    with pytest.raises(LaunchError, match="r3nb.train ended with exit code 2\nerror: max_steps is 0, expected 1 or more"): launch(options | {"max_steps": 0, "output_dir": tmp_path/"x"})


def test_the_stage_depends_on_the_module_that_it_launches():
    assert {"train", "model", "indices", "launch"} <= set(code_of(STAGE))


class Kernel:
    "A kernel that executes the stage notebook up to its second training"
    def __init__(self, folder, study, **params):
        self.manager = KernelManager(transport_encryption="auto")
        self.manager.start_kernel(cwd=str(folder), env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"})
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)
        given = {"out_dir": str(folder/"out"), "study_dir": str(study)} | params
        self.cells = [src + "\n" + "\n".join(f"{k} = {v!r}" for k, v in given.items()) if "parameters" in tags else src for src, tags in code_cells(STAGE)][:4]

    def run(self, source, during=None):
        "Execute a cell: its reply, and what it printed"
        printed, asked = [], self.client.execute(source)
        while True:
            if during and during(): during = None
            try: m = self.client.get_iopub_msg(timeout=.2)
            except queue.Empty: continue
            if m["parent_header"].get("msg_id") != asked: continue
            if m["msg_type"] == "stream": printed.append(m["content"]["text"])
            if m["msg_type"] == "status" and m["content"]["execution_state"] == "idle": break
        while (reply := self.client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != asked: continue
        return reply["content"], "".join(printed)


@pytest.fixture
def kernel(tmp_path, study):
    made = []
    def start(**params):
        made.append(Kernel(tmp_path, study, **params))
        return made[-1]
    yield start
    for k in made:
        k.client.stop_channels()
        k.manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_the_stop_button_on_the_real_notebook(kernel, tmp_path):
    "Interrupted in the middle of a training: it saves, nothing is left running, and the same cell goes on to the end"
    k, home = kernel(max_steps=40, batch_size=1, save_every=1000), tmp_path/"out/lora"
    for cell in k.cells[:3]: assert k.run(cell)[0]["status"] == "ok"
    def press(): return (home/"history.jsonl").exists() and len((home/"history.jsonl").read_text().splitlines()) > 1 and (k.manager.interrupt_kernel() or True)
    reply, printed = k.run(k.cells[3], press)
    assert reply["status"] == "error" and reply["ename"] == "KeyboardInterrupt" and "waiting up to 120 s for the checkpoint" in printed and "stopped by a signal" in printed
    kernel_process = psutil.Process(k.manager.provisioner.process.pid)
    wait_for(lambda: not [p for p in kernel_process.children(recursive=True) if "r3nb.train" in " ".join(p.cmdline())])
    saved, = (home/"checkpoints").iterdir()
    assert 2 <= int(saved.name.removeprefix("step_")) < 40 and len((home/"history.jsonl").read_text().splitlines()) == int(saved.name.removeprefix("step_"))
    reply, printed = k.run(k.cells[3])
    assert reply["status"] == "ok" and (tmp_path/"out/lora/checkpoints/step_40/modules.safetensors").exists()
    assert "40/40" in printed and "trained: " in printed and len(printed.splitlines()) < 40


@pytest.mark.slow
def test_a_failure_in_the_real_notebook(kernel):
    k = kernel(max_steps=2, batch_size=1, lr=-1.0)
    for cell in k.cells[:3]: assert k.run(cell)[0]["status"] == "ok"
    reply, _ = k.run(k.cells[3])
    assert reply["ename"] == "LaunchError" and "error: lr is -1.0, expected 0 or more" in reply["evalue"] and "exit code 2" in reply["evalue"]
