"""Runs the examples and looks at what the broker says of what they did."""

import json
import os
import signal
import subprocess
import sys
import time

MAYFLY, EXAMPLES, ROOT, DATA = (os.environ[name] for name in ("MAYFLY", "EXAMPLES", "ROOT", "DATA"))
ENDPOINT = f"unix://{DATA}/tasks.sock"
PYTHON = f"{ROOT}/examples/python"
PATIENCE = 60


def run(command, **more):
    environment = {**os.environ, "MAYFLY_ENDPOINT": ENDPOINT}
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=PATIENCE, **more)


def mayfly(*words):
    done = run([MAYFLY, "--data-dir", DATA, "--output", "json", *words], check=True)
    return json.loads(done.stdout)


def show(task):
    return mayfly("task", "show", task)


def until(what, look):
    """Looks again until it is so: an exit is seen soon, and not at once."""
    end = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < end, f"waited too long: {what}"
        time.sleep(0.05)


def refused(task):
    """Whether nobody accepts what a task was given: all of its credentials are taken back."""
    credentials = show(task)["credentials"]
    return bool(credentials) and all(one["revoked_at"] for one in credentials)


def agent():
    done = run([sys.executable, f"{PYTHON}/agent.py"], check=True)
    said = json.loads(done.stdout)
    assert said["calls"][0]["mail"] == "refused", said
    root = show(said["task"])
    assert (root["state"], root["cause"]) == ("ended", "completed"), root
    for call, audience in zip(said["calls"], (["warehouse"], ["mail"]), strict=True):
        step = show(call["task"])
        assert step["parent"] == root["task"] and step["scope"]["audiences"] == audience, step
        assert step["cause"] == "completed" and refused(step["task"]), step


def worker(command, job):
    """A crash, a successor that finishes, and a third who finds nothing to do."""
    window_end = str(int(time.time() * 1000) + 600_000)
    crashed = run([*command, job, window_end, "--crash"])
    assert crashed.returncode == -signal.SIGKILL, crashed
    first = json.loads(crashed.stdout)
    until("the crashed attempt ends", lambda: show(first["attempt"])["state"] == "ended")
    assert show(first["job"])["state"] == "active" and refused(first["attempt"]), show(first["job"])

    second = json.loads(run([*command, job, window_end], check=True).stdout)
    assert second["job"] == first["job"] and second["attempt"] != first["attempt"], second
    assert show(second["attempt"])["cause"] == "completed", show(second["attempt"])
    until("the job closes", lambda: show(first["job"])["state"] == "ended")
    closed = show(first["job"])
    assert (closed["cause"], closed["attempts"]) == ("completed", 2), closed

    third = json.loads(run([*command, job, window_end], check=True).stdout)
    assert third["attempt"] is None and third["job"] == first["job"], third


def main():
    agent()
    print("examples: agent.py ok")
    worker([sys.executable, f"{PYTHON}/worker.py"], "python-1")
    print("examples: worker.py ok")
    if "go" in sys.argv:
        worker([f"{EXAMPLES}/bin/worker"], "go-1")
        print("examples: go/worker ok")


if __name__ == "__main__":
    main()
