"""Everything that the scenario starts: a backend, Mayfly, and Envoys inside tasks. Ends what it started,
by its id, and nothing else."""

import http.client
import http.server
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
START_SECONDS = 30
# The application of a task: starts the sidecar beside it, says its id, and waits. Only the application is
# killed, as a crash would; its sidecar goes on without a task.
APPLICATION = (
    "import subprocess, sys\n"
    "sidecar = subprocess.Popen(sys.argv[2:])\n"
    "open(sys.argv[1], 'w').write(f'{__import__(\"os\").getpid()} {sidecar.pid}\\n')\n"
    "sidecar.wait()\n"
)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def blocks(language):
    """The code blocks of docs/envoy.md: what is shown is what runs."""
    text = (HERE / "../../../docs/envoy.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)


def placed(text, places):
    """`text` with the paths and ports that it shows replaced by ours."""
    for shown, ours in places.items():
        if shown not in text:
            raise RuntimeError(f"{shown} is nowhere to be replaced")
        text = text.replace(shown, str(ours))
    return text


class Backend(threading.Thread):
    """Says who its caller is, as far as the Envoy before it tells."""

    def __init__(self):
        super().__init__(daemon=True)

        class Answer(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # Head and body in one piece, or each answer waits for an acknowledgement.

            def do_GET(self):
                body = self.headers.get("x-forwarded-client-cert", "").encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.port = self.server.server_address[1]
        self.start()

    def run(self):
        self.server.serve_forever()


class House:
    """A Mayfly whose authorities and certificates live for so long, and what was begun through it."""

    def __init__(self, mayfly, work, partner_bundle, lives):
        self.mayfly, self.work = mayfly, pathlib.Path(work)
        self.work.mkdir()
        self.data = self.work / "data"
        self.data.mkdir(mode=0o700)
        self.started, self.sidecars = [], []
        places = {"@UID@": os.getuid(), "@CA_TTL@": lives[0], "@TTL@": lives[1]}
        (self.work / "mayfly.toml").write_text(placed((HERE / "mayfly.toml").read_text(), places))
        (self.work / "partner.json").write_text(partner_bundle)
        arguments = ["up", "--data-dir", self.data, "--config", self.work / "mayfly.toml"]
        self.broker = self.start("mayfly", [mayfly, *arguments])
        self.wait("mayfly to be ready", lambda: "ready" in self.text("mayfly.out"), self.broker)

    def start(self, name, command):
        out, err = (open(self.work / f"{name}.{kind}", "w") for kind in ("out", "err"))
        with out, err:
            process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        self.started.append(process)
        return process

    def text(self, name):
        return (self.work / name).read_text(errors="replace")

    def wait(self, what, done, process=None, seconds=START_SECONDS):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if done():
                return
            if process is not None and process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"waited in vain for {what}")

    def stop(self):
        """Envoys first, then whoever began them, Mayfly last. A second time it does nothing."""
        for pid in self.sidecars:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.sidecars.clear()
        for process in reversed(self.started):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self.started):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Envoy:
    """An application with an Envoy beside it, begun as one task of `profile`."""

    def __init__(self, house, profile, name, config, admin):
        self.house, self.name, self.admin = house, name, admin
        path = house.work / f"{name}.yaml"
        path.write_text(config)
        pids = house.work / f"{name}.pids"
        program = pathlib.Path(sys.prefix) / "bin" / "envoy"
        envoy = [program, "-c", path, "--disable-hot-restart", "--concurrency", "1", "--log-level", "info"]
        application = [sys.executable, "-c", APPLICATION, pids, *envoy]
        run = [house.mayfly, "run", "--data-dir", house.data, "--as", profile, "--", *application]
        process = house.start(name, run)
        house.wait(f"{name} to start", lambda: pids.exists() and pids.read_text().endswith("\n"), process)
        self.application, self.sidecar = map(int, pids.read_text().split())
        house.sidecars.append(self.sidecar)
        house.wait(f"{name} to have its secrets", self.has_secrets, process)

    def has_secrets(self):
        try:
            return all(self.stat(f"sds.{secret}.update_success") > 0 for secret in ("default", "ALL")) and self.ready()
        except OSError:
            return False

    def ready(self):
        return b"LIVE" in self.ask("/ready")

    def ask(self, path, method="GET"):
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=5)
        try:
            connection.request(method, path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def stat(self, suffix):
        """The sum of the counters whose names end so; 0 if there is none."""
        lines = self.ask(f"/stats?filter={re.escape(suffix)}$").decode().splitlines()
        return sum(int(line.rsplit(": ", 1)[1]) for line in lines if ": " in line)

    def crash(self):
        """Kills the application, not its sidecar."""
        os.kill(self.application, signal.SIGKILL)
