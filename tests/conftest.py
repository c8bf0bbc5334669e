"""What every test process starts with.

An interrupt reaches what tests start, also when they run in the background: shells start such jobs with SIGINT ignored, and children inherit that.
Each of pytest's two processes computes on one thread: with two each, four threads would wait for each other on two cores.
"""
import os
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ: os.environ.setdefault("OMP_NUM_THREADS", "1")
