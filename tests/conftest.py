"""What every test process starts with.

An interrupt reaches what tests start, also when they run in the background: shells start such jobs with SIGINT ignored, and children inherit that.
Each of pytest's two processes computes on one thread: with two each, four threads would wait for each other on two cores.
"""
import os
import signal

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ: os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A small world, its index and a backbone"
    import tiny
    import torch

    from r3nb.indices import EvidenceIndex
    folder = tmp_path_factory.mktemp("world")
    torch.set_num_threads(1)
    world = tiny.world(folder)
    world.backbone, world.folder, world.opened = tiny.backbone(folder/"backbone"), folder, EvidenceIndex.load(world.index)
    return world
