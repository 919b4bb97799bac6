#!/usr/bin/env python3
"""A supervisor: begins tasks on processes that it starts, and ends them, at a steady rate.

Every workload is a process on a stock SPIFFE client. It waits until its task has been begun, fetches an
X.509-SVID and a JWT-SVID, and after 1 to 5 seconds exits by itself, is killed with -9, or is outlived by
nobody but its process, because the supervisor ends the task. A verifier that follows the feed is asked
about both credentials while the task lives and after its end. README.md says what is claimed and counted.
"""

import argparse
import asyncio
import collections
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time

import house

AUDIENCE = "supervisor"
LIFE_SECONDS = (1.0, 5.0)
# Where the machine cannot keep up, fewer begin, and that is counted.
UNDER_WAY_MAX = 2000
ENDINGS = ("exit", "kill", "end")
CALL_SECONDS = 20


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=50, help="tasks begun each second")
    parser.add_argument("--seconds", type=float, default=20, help="for how long tasks are begun")
    parser.add_argument("--mix", default="rust=97,go=2.5,python=0.5", help="shares of the three workloads")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mayfly", required=True, type=pathlib.Path)
    parser.add_argument("--verifier", required=True, type=pathlib.Path)
    parser.add_argument("--rust", required=True, type=pathlib.Path)
    parser.add_argument("--go", type=pathlib.Path, help="left out of the mix if it is not given")
    return parser.parse_args()


class Claims:
    """What is claimed of every task: how often it held, and the first times that it did not."""

    def __init__(self):
        self.held = collections.Counter()
        self.failed = collections.defaultdict(list)

    def hold(self, name, true, detail=""):
        if true:
            self.held[name] += 1
        else:
            self.failed[name].append(str(detail))

    def tell(self):
        for name in sorted(self.held | dict.fromkeys(self.failed, 0)):
            print(f"  {name:<58} {self.held[name]:>7} held {len(self.failed[name]):>5} failed")
            for detail in self.failed[name][:5]:
                print(f"      {detail}")


class Supervisor:
    def __init__(self, wish, work, broker, verifier, protos):
        self.wish, self.broker, self.verifier = wish, broker, verifier
        self.tasks, self.wire, self.operator, self.operator_wire, self.record = protos
        self.claims = Claims()
        self.samples = collections.defaultdict(list)
        self.held = []
        self.begun = []
        self.under_way = self.skipped = 0
        python = pathlib.Path(sys.executable)
        self.programs = {
            "rust": [wish.rust],
            "go": [wish.go],
            "python": [python, "-B", house.HERE / "worker.py"],
        }
        self.environment = {**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{broker.socket}"}
        self.errors = open(work / "workers.err", "wb")

    async def run(self):
        """Begins tasks when they are due, whether or not the earlier ones are done."""
        luck = random.Random(self.wish.seed)
        kinds, shares = zip(*(part.split("=") for part in self.wish.mix.split(",")))
        count = int(self.wish.rate * self.wish.seconds)
        began = time.monotonic()
        async with asyncio.TaskGroup() as lives:
            for at in range(count):
                kind = luck.choices(kinds, [float(share) for share in shares])[0]
                seconds = luck.uniform(*LIFE_SECONDS)
                wait = began + at / self.wish.rate - time.monotonic()
                await asyncio.sleep(max(0, wait))
                if self.under_way >= UNDER_WAY_MAX:
                    self.skipped += 1
                    continue
                self.under_way += 1
                lives.create_task(self.live(at, kind, ENDINGS[at % 3], seconds))

    async def live(self, at, kind, ending, seconds):
        process = None
        try:
            spawned = time.monotonic_ns()
            process = await asyncio.create_subprocess_exec(
                *self.programs[kind], stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=self.errors, env=self.environment, limit=house.LINE_BYTES_MAX,
            )  # fmt: skip
            await self.hear(process)
            self.samples[f"spawn_to_ready_{kind}"].append((time.monotonic_ns() - spawned) / 1e6)
            await self.work(process, at, kind, ending, seconds)
        except Exception as error:  # one task's trouble is counted, and the others go on
            self.claims.hold("every task could be played to its end", False, f"{kind} {at} {ending}: {error!r}")
        else:
            self.claims.hold("every task could be played to its end", True)
        finally:
            self.under_way -= 1
            if process is not None:
                if process.returncode is None:
                    process.kill()
                await process.wait()

    async def work(self, process, at, kind, ending, seconds):
        key = f"{self.wish.seed}-{at}"
        began = time.monotonic_ns()
        task = await self.begin(process.pid, kind, key)
        self.samples["begin"].append((time.monotonic_ns() - began) / 1e6)
        self.begun.append(began)
        ends = began + int(seconds * 1e9)
        process.stdin.write(b"go %d\n" % (ends if ending == "exit" else 0))
        said = await self.hear(process)
        both = max(said["t_x509"], said["t_jwt"]) - began
        self.samples["begin_to_x509"].append((said["t_x509"] - began) / 1e6)
        self.samples["begin_to_both"].append(both / 1e6)
        self.samples[f"begin_to_both_{kind}"].append(both / 1e6)
        self.claims.hold(
            "both credentials before half of the task's life", both < seconds * 1e9 / 2,
            f"{kind} {task}: {both / 1e6:.0f} ms of {seconds:.2f} s",
        )  # fmt: skip
        held = {"task": task, "leaf": said["leaf"], "token": said["token"]}
        answer = await self.verifier.ask(held)
        # What was answered after the end says nothing about the life.
        if time.monotonic_ns() < ends:
            for what in ("x509", "jwt", "online"):
                self.claims.hold(f"accepted while the task lives: {what}", answer[what] is None, answer)
        else:
            self.claims.hold("asked while the task lived", False, f"{kind} {task}")
        if at % 20 == 0:
            again = await self.begin(process.pid, kind, key)
            self.claims.hold("the same Begin told twice is one task", again == task, f"{task} {again}")
        since = await self.end(process, task, ending, ends)
        answer = await self.verifier.ask(held, since)
        for what in ("x509", "jwt", "online"):
            self.claims.hold(f"refused after the end: {what}", answer[what] is not None, answer)
            if answer[f"{what}_ms"] is not None:
                self.samples[f"{ending}_to_refused_{what}"].append(answer[f"{what}_ms"])
        self.claims.hold("what is refused is revoked, not expired", answer["x509"] == "revoked" == answer["jwt"], answer)
        held["serial"] = answer["serial"]
        self.held.append(held)
        if ending == "end":
            process.stdin.write(b"again\n")
            said = await self.hear(process)
            self.claims.hold("a process whose task was ended gets nothing more", said["refused"], task)
            process.stdin.close()

    async def begin(self, pid, kind, key):
        request = self.tasks.BeginRequest(
            profile=kind,
            holder=self.tasks.HolderWish(process_pid=pid),
            declaration=self.tasks.Declaration(
                intent="one short piece of work",
                scope=self.record.Scope(audiences=self.record.Names(names=[AUDIENCE])),
            ),
            idempotency_key=key,
        )
        return (await house.call(self.wire.Begin, request, CALL_SECONDS)).task

    async def end(self, process, task, ending, ends):
        """Returns the instant of the end, or one before it."""
        if ending == "exit":
            bye = (await self.hear(process))["bye"]
            await process.wait()
            return bye
        await asyncio.sleep(max(0, ends - time.monotonic_ns()) / 1e9)
        since = time.monotonic_ns()
        if ending == "kill":
            process.kill()
        else:
            await house.call(self.wire.End, self.tasks.EndRequest(task=task, cause="completed"), CALL_SECONDS)
            self.samples["end"].append((time.monotonic_ns() - since) / 1e6)
        return since

    async def hear(self, process):
        line = await asyncio.wait_for(process.stdout.readline(), CALL_SECONDS)
        if not line:
            raise EOFError(f"the workload is gone, see workers.err; it left {await process.wait()}")
        return json.loads(line)

    async def settle(self):
        """At the end nothing is left: no task, no credential, in nobody's view."""
        gate = asyncio.Semaphore(64)

        async def refused(held):
            async with gate:
                answer = await self.verifier.ask(held)
            for what in ("x509", "jwt", "online"):
                self.claims.hold(f"refused at the end of the run: {what}", answer[what] is not None, answer)

        await asyncio.gather(*(refused(held) for held in self.held))
        ours = {held["task"] for held in self.held}
        for profile in self.programs:
            request = self.operator.ListTasksRequest(profile=profile)
            listed = await house.call(self.operator_wire.ListTasks, request, CALL_SECONDS)
            self.claims.hold("no task of the run lives", not listed.tasks, [view.task for view in listed.tasks][:5])
            await self.take_stock(profile)
        return ours

    async def take_stock(self, profile):
        holdings, page = [], ""
        while True:
            request = self.operator.InventoryRequest(profile=profile, page_token=page)
            stock = await house.call(self.operator_wire.Inventory, request, CALL_SECONDS)
            holdings += stock.holdings
            page = stock.next_page_token
            if not page:
                break
        self.claims.hold("the inventory is empty", not holdings, holdings[:2])


async def log_of(wish, broker):
    """What the log says, read from the disk after the broker has stopped."""
    reader = await asyncio.create_subprocess_exec(
        wish.verifier, "log", broker.data / "store" / "log", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await reader.communicate()
    return [json.loads(line) for line in out.splitlines()], reader.returncode


def check_log(claims, ours, lines, status):
    claims.hold("the log's chain holds", status == 0, f"exit {status}")
    tasks = {line["task"]: line for line in lines}
    claims.hold("the log knows the tasks of the run and no others", set(tasks) == ours, set(tasks) ^ ours)
    for task in ours & set(tasks):
        line = tasks[task]
        claims.hold("one begin and one end in the log", (line["began"], line["ended"]) == (1, 1), line)
        claims.hold("both credentials in the log", line["x509"] >= 1 and line["jwt"] >= 1, line)


async def main():
    wish = arguments()
    if wish.go is None:
        wish.mix = ",".join(part for part in wish.mix.split(",") if not part.startswith("go="))
    work = pathlib.Path(tempfile.mkdtemp(prefix="mayfly-supervisor."))
    broker = verifier = None
    try:
        tasks, tasks_grpc, operator, operator_grpc, record = house.stubs(work)
        names = {
            "VERIFIER": wish.verifier.resolve(),
            "RUST": wish.rust.resolve(),
            "GO": wish.go.resolve() if wish.go else "/nowhere",
            "PYTHON": pathlib.Path(sys.executable).resolve(),
        }
        broker = await house.Broker.start(wish.mayfly, work, names)
        verifier = await house.Verifier.start(wish.verifier, broker)
        orchestrator, admin = house.channel(broker.data / "tasks.sock"), house.channel(broker.data / "admin.sock")
        with orchestrator, admin:
            wires = tasks_grpc.TasksStub(orchestrator), operator_grpc.OperatorStub(admin)
            protos = tasks, wires[0], operator, wires[1], record
            supervisor = Supervisor(wish, work, broker, verifier, protos)
            return await play(wish, broker, verifier, supervisor)
    finally:
        for one in (verifier, broker):
            if one is not None:
                await one.stop()
        if os.environ.get("KEEP"):
            print(f"kept {work}", file=sys.stderr)
        else:
            shutil.rmtree(work)


async def play(wish, broker, verifier, supervisor):
    cpu = house.cpu_seconds(broker.pid)
    verifier_cpu, own = house.cpu_seconds(verifier.pid), time.process_time()
    machine, wall = house.machine_seconds(), time.monotonic()
    await supervisor.run()
    cpu = house.cpu_seconds(broker.pid) - cpu
    verifier_cpu, own = house.cpu_seconds(verifier.pid) - verifier_cpu, time.process_time() - own
    machine, wall = house.machine_seconds() - machine, time.monotonic() - wall
    ours = await supervisor.settle()
    await verifier.stop()
    await broker.stop()
    claims = supervisor.claims
    check_log(claims, ours, *await log_of(wish, broker))

    count = len(supervisor.begun)
    span = (max(supervisor.begun) - min(supervisor.begun)) / 1e9 if count > 1 else float("nan")
    cores = os.cpu_count()
    print(f"supervisor: {count} tasks of {wish.mix}; {wish.rate:g} a second wanted for {wish.seconds:g} s")
    print(f"  held: {(count - 1) / span:.1f} begun a second; not begun because too many were under way: {supervisor.skipped}")
    print(f"  processor time a task: broker {1e3 * cpu / count:.2f} ms, supervisor {1e3 * own / count:.2f} ms, "
          f"verifier {1e3 * verifier_cpu / count:.2f} ms; machine {100 * machine / wall / cores:.0f} % busy")  # fmt: skip
    print(f"  tasks a second for each core of the broker: {count / cpu:.0f}")
    figures = {name: house.quantiles(samples) for name, samples in sorted(supervisor.samples.items())}
    for name, figure in figures.items():
        print(f"  {name:<28} " + "  ".join(f"{key} {value:>9}" for key, value in figure.items()))
    print("claims:")
    claims.tell()
    failed = sum(len(details) for details in claims.failed.values())
    print(json.dumps({
        "tasks": count, "rate_held": round((count - 1) / span, 1), "not_begun": supervisor.skipped,
        "failed": failed, "leaked": sum(len(claims.failed[name]) for name in claims.failed if name.startswith("refused at")),
        "broker_ms_per_task": round(1e3 * cpu / count, 3), "tasks_per_broker_core_second": round(count / cpu, 1),
        "ms": figures,
    }))  # fmt: skip
    return 1 if failed or count == 0 else 0


if __name__ == "__main__":
    if sys.version_info < (3, 12):
        # The default there starts a thread for each child.
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    sys.exit(asyncio.run(main()))
