"""What the supervisor stands on: generated stubs, a broker of its own, a verifier, and the clocks of /proc."""

import asyncio
import importlib
import json
import math
import os
import pathlib
import sys

import grpc
from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
START_SECONDS = 30
LINE_BYTES_MAX = 1 << 20
QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}


def stubs(work):
    """Generates the stubs from proto/ and imports them; they are never kept."""
    out = work / "stubs"
    out.mkdir()
    proto = ROOT / "proto"
    files = [str(path) for path in sorted((proto / "mayfly" / "v1").glob("*.proto"))]
    words = ["protoc", f"-I{proto}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    if protoc.main(words) != 0:
        raise SystemExit("the stubs could not be generated")
    sys.path.insert(0, str(out))
    names = ["tasks_pb2", "tasks_pb2_grpc", "operator_pb2", "operator_pb2_grpc", "record_pb2"]
    return [importlib.import_module(f"mayfly.v1.{name}") for name in names]


def channel(socket):
    options = [("grpc.max_receive_message_length", -1), ("grpc.default_authority", "localhost")]
    return grpc.insecure_channel(f"unix:{socket}", options=options)


async def call(method, request, timeout):
    """One call. `grpc.aio` would wake the loop four times for it, one event a turn, and at some hundred
    calls a second they queue up in this process for seconds; the other client wakes it once."""
    loop = asyncio.get_running_loop()
    answer = loop.create_future()

    def settle(done):
        if answer.cancelled():
            return
        if (error := done.exception()) is not None:
            answer.set_exception(error)
        else:
            answer.set_result(done.result())

    method.future(request, timeout=timeout).add_done_callback(lambda done: loop.call_soon_threadsafe(settle, done))
    return await answer


def cpu_seconds(pid):
    """Processor time of all threads of a process, those that ended included."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_seconds():
    """Processor time that all of the machine has used."""
    user, nice, system, _, _, irq, softirq = map(
        int, pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


class Broker:
    """`mayfly up` in a directory of its own."""

    @classmethod
    async def start(cls, program, work, names):
        self = cls()
        self.data = work / "data"
        self.data.mkdir(mode=0o700)
        text = (HERE / "supervisor.toml").read_text()
        for name, value in {"UID": os.getuid(), **names}.items():
            text = text.replace(f"@{name}@", str(value))
        config = work / "supervisor.toml"
        config.write_text(text)
        # It warns of each credential that is shown after its end, and the verifier shows them all.
        said = work / "mayfly.err"
        with open(said, "wb") as errors:
            self.process = await asyncio.create_subprocess_exec(
                program, "up", "--data-dir", self.data, "--config", config,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        line = await asyncio.wait_for(self.process.stdout.readline(), START_SECONDS)
        if not line.startswith(b"ready"):
            raise SystemExit(f"mayfly did not become ready: {said.read_text()}")
        self.pid = self.process.pid
        self.socket = self.data / "workload.sock"
        return self

    async def stop(self):
        if self.process.returncode is None:
            self.process.terminate()
            await asyncio.wait_for(self.process.wait(), START_SECONDS)


class Verifier:
    """Somebody else's view: follows the feed, and is asked by lines."""

    @classmethod
    async def start(cls, program, broker):
        self = cls()
        self.process = await asyncio.create_subprocess_exec(
            program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES_MAX,
            env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{broker.socket}"},
        )  # fmt: skip
        line = await asyncio.wait_for(self.process.stdout.readline(), START_SECONDS)
        if not json.loads(line or b"{}").get("ready"):
            raise SystemExit("the verifier did not become ready")
        self.pid = self.process.pid
        self.waiting = {}
        self.asked = 0
        self.reading = asyncio.create_task(self.read())
        return self

    async def read(self):
        while line := await self.process.stdout.readline():
            answer = json.loads(line)
            self.waiting.pop(answer["id"]).set_result(answer)
        for left in self.waiting.values():
            left.set_exception(EOFError("the verifier is gone"))

    async def ask(self, held, since=None):
        """What it thinks of these credentials: at once, or when all have been refused since then."""
        self.asked += 1
        answer = self.waiting[self.asked] = asyncio.get_running_loop().create_future()
        question = {"id": self.asked, "leaf": held["leaf"], "token": held["token"], "since": since}
        self.process.stdin.write(json.dumps(question).encode() + b"\n")
        return await answer

    async def stop(self):
        self.process.stdin.close()
        await self.process.wait()
        await self.reading


def quantiles(samples):
    """The values below which half, 99 % and 99.9 % of the samples lie, and the largest, in ms."""
    if not samples:
        return {}
    ordered = sorted(samples)
    figures = {name: ordered[math.ceil(len(ordered) * q) - 1] for name, q in QUANTILES.items()}
    return {**{name: round(value, 2) for name, value in figures.items()}, "n": len(ordered)}
