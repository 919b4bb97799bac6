"""What nginx/probe.py and postgres/probe.py have in common: a thief, a clock and a verdict.

A client's task is held by its sidecar. The thief copies the client's files, the sidecar is killed with
-9, and the question is for how long the server believes the copies, which are good for a minute.
"""

import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time

PATIENCE = 30
WATCHED = 3


def fail(why):
    print(f"{why}", file=sys.stderr)
    sys.exit(1)


def steal(keys, where):
    """A copy of one moment: the link is read once."""
    loot = tempfile.mkdtemp(dir=where)
    version = pathlib.Path(keys) / os.readlink(pathlib.Path(keys) / "..data")
    for entry in version.iterdir():
        shutil.copy(entry, loot)
    return loot


def rotations(attempt, serial, wanted):
    """Attempts without pause until `serial` has changed `wanted` times; how many there were, none may fail."""
    seen, attempts, limit = {serial()}, 0, time.monotonic() + PATIENCE
    while len(seen) <= wanted:
        problem = attempt()
        attempts += 1
        if problem:
            fail(f"attempt {attempts} failed while certificates rotated: {problem}")
        if time.monotonic() > limit:
            fail(f"only {len(seen) - 1} rotations within {PATIENCE} s")
        seen.add(serial())
    return attempts


def refusal(attempt, holder):
    """Kills the holder and attempts until it is refused: milliseconds, and in which words."""
    problem = attempt()
    if problem:
        fail(f"refused while the task was going on: {problem}")
    killed = time.monotonic()
    os.kill(holder, signal.SIGKILL)
    while time.monotonic() - killed < PATIENCE:
        problem = attempt()
        if problem:
            return round((time.monotonic() - killed) * 1000, 1), problem
    fail(f"still believed {PATIENCE} s after the end of the task")


def fate(served):
    """What becomes of a connection that was open before the end, used once every tenth of a second."""
    began = time.monotonic()
    while time.monotonic() - began < WATCHED:
        if not served():
            return "closed"
        time.sleep(0.1)
    return f"still served after {WATCHED} s"


def report(**figures):
    print(json.dumps(figures))
