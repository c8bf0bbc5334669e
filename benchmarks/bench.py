"""What the benchmarks of the index share: a line of JSON and a line of Markdown per figure, and encoders that cost next to nothing."""
import inspect
import json
import os
import subprocess
import sys
from hashlib import blake2b

import numpy as np
from PIL import Image, ImageDraw


def report(name, value, unit, goal="", **more):
    "Print a figure as JSON and as a row of a table, with the number of cores that this process may use."
    cores = len(os.sched_getaffinity(0))
    print(json.dumps({"benchmark": name, "value": round(float(value), 4), "unit": unit, "goal": goal, "cores": cores} | more), flush=True)
    extra = ", ".join(f"{k} {v}" for k, v in more.items())
    print(f"| {name} | {value:.3g} {unit} | {goal} | {cores} cores{', ' + extra if extra else ''} |", flush=True)


def peak_mb():
    "Peak resident memory of this process in MB, mapped files included; on Linux ru_maxrss would count what the parent held before exec."
    import resource
    import sys
    if sys.platform == "darwin": return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with open("/proc/self/status") as f: return next(int(line.split()[1]) for line in f if line.startswith("VmHWM:")) / 1024


def peak_of(code, *args):
    "Run code in a process of its own: the lines that it printed, and its peak memory in MB."
    done = subprocess.run([sys.executable, "-c", f"{code}\n\n{inspect.getsource(peak_mb)}\nprint(peak_mb())", *map(str, args)],
                          stdout=subprocess.PIPE, text=True, check=True)
    *lines, peak = done.stdout.splitlines()
    return lines, float(peak)


def run_self(*words):
    "Run the calling script again with other arguments, in a process of its own; the last line it prints, as JSON."
    done = subprocess.run([sys.executable, sys.argv[0], *map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


class HashText:
    "Unit vectors that depend on the text alone: noise by the text's hash, around one of `kinds` centres if there are any."
    def __init__(self, width=384, kinds=0):
        self.name, self.fingerprint = "hash", f"hash-{width}-{kinds}"
        g = np.random.default_rng(0)
        self.width, self.noise = width, g.standard_normal(2**20, dtype="float32")
        self.kinds = g.standard_normal((kinds, width), dtype="float32") if kinds else None

    def encode(self, texts):
        keys = np.array([int.from_bytes(blake2b(t.encode(), digest_size=8).digest(), "big") for t in texts], dtype="uint64")
        a, b = (keys & np.uint64(0xFFFFF)).astype("int64"), (keys >> np.uint64(24) & np.uint64(0xFFFFF)).astype("int64")
        span, top = np.arange(self.width), len(self.noise) - self.width
        v = self.noise[(a % top)[:, None] + span] + self.noise[(b % top)[:, None] + span]
        if self.kinds is not None: v = 1.5 * self.kinds[(keys >> np.uint64(48)).astype("int64") % len(self.kinds)] + v
        return v / np.linalg.norm(v, axis=1, keepdims=True)


class HashImage:
    "Unit vectors that depend on the pixels alone."
    name, fingerprint = "pixels", "pixels-1"
    def encode(self, images):
        v = np.stack([np.asarray(im.convert("RGB").resize((3, 3)), dtype="float32").ravel() + 1 for im in images])
        return v / np.linalg.norm(v, axis=1, keepdims=True)


def chart(i, size=(600, 450)):
    "A drawn bar chart."
    g = np.random.default_rng(i)
    im = Image.new("RGB", size, "white")
    d = ImageDraw.Draw(im)
    d.text((20, 10), f"Chart {i}", fill="black")
    for k in range(8): d.rectangle((40 + 65 * k, 420 - int(g.integers(30, 350)), 90 + 65 * k, 420), fill=tuple(int(c) for c in g.integers(0, 255, 3)))
    return im
