"""Two real Envoys between an application and a backend, with certificates from Mayfly by SDS.

Shown: mTLS that says who is there; certificates and an authority that rotate under load without a failed
request; peers of other trust domains let in or refused as configured; the end of a task refused on new
connections, within a time that is measured; and what a live connection is worth. One JSON object a line;
exit status 1 and an `error` line if anything is not as docs/envoy.md says.
"""

import glob
import json
import os
import re
import shutil
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time

from foreign import Authority
from processes import Backend, Envoy, House, blocks, free_port, placed

LOAD_SECONDS = 45  # Time for two authorities to begin to sign, and for twenty certificates.
LOAD_PAUSE = 0.02
ENDS = 9
QUIET_SECONDS = 1.5
REFUSAL_SECONDS = 10
# After the first refusal, as many more: an end is not unsaid.
REFUSALS = 20
REQUEST = b"GET / HTTP/1.1\r\nhost: backend\r\n\r\n"
CLIENT = re.compile(r"URI=(spiffe://example\.org/shop/client/task/[a-z0-9]+)")


def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


def demand(truth, what):
    if not truth:
        raise RuntimeError(what)


class Connection:
    """One connection through a sidecar, which makes one mTLS connection of it."""

    def __init__(self, port, wrap=lambda plain: plain):
        self.socket = wrap(socket.create_connection(("127.0.0.1", port), timeout=5))

    def get(self):
        """The body of one answer."""
        self.socket.sendall(REQUEST)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._read()
        head, body = answer.split(b"\r\n\r\n", 1)
        length = int(re.search(rb"content-length: (\d+)", head.lower()).group(1))
        while len(body) < length:
            body += self._read()
        demand(head.startswith(b"HTTP/1.1 200 "), f"answered {head[:40]}")
        return body.decode()

    def _read(self):
        part = self.socket.recv(65536)
        if not part:
            raise ConnectionError("closed")
        return part

    def close(self):
        self.socket.close()


def request(port, wrap=lambda plain: plain):
    """The answer to a request on a connection of its own, or None if that is refused."""
    connection = None
    try:
        connection = Connection(port, wrap)
        return connection.get()
    except OSError:  # ssl.SSLError is one, and so is ConnectionError.
        return None
    finally:
        if connection is not None:
            connection.close()


class Shop:
    """The two configurations of docs/envoy.md, with our ports in the place of theirs."""

    def __init__(self, house, backend):
        self.house, self.backend = house, backend
        self.client_yaml, self.server_yaml = blocks("yaml")
        self.socket = house.data / "workload.sock"

    def server(self, name, matcher=None, resumes=False):
        port, admin = free_port(), free_port()
        places = {
            "/run/mayfly/workload.sock": self.socket, "port_value: 15443": f"port_value: {port}",
            "port_value: 9902": f"port_value: {admin}", "port_value: 8080": f"port_value: {self.backend.port}",
            "0.0.0.0": "127.0.0.1",
        }
        if matcher is not None:
            places["spiffe://example.org/shop/client/"] = matcher
        if resumes:
            places["disable_stateless_session_resumption: true"] = "disable_stateless_session_resumption: false"
            places["disable_stateful_session_resumption: true"] = "disable_stateful_session_resumption: false"
        return Envoy(self.house, "server", name, placed(self.server_yaml, places), admin), port

    def client(self, name, server_port):
        port, admin = free_port(), free_port()
        places = {
            "/run/mayfly/workload.sock": self.socket, "port_value: 15443": f"port_value: {server_port}",
            "port_value: 9901": f"port_value: {admin}", "port_value: 15001": f"port_value: {port}",
        }
        return Envoy(self.house, "client", name, placed(self.client_yaml, places), admin), port


def shows_mtls(port):
    who = request(port)
    demand(who is not None, "the first request was refused")
    found = CLIENT.search(who)
    demand(found, f"the backend was told of {who}")
    say("mtls", peer=found.group(1))


def rotates_under_load(house, server, client, port):
    """Every request on a connection of its own, so that each is a handshake with what is current."""
    failed, hashes, took = [], set(), []
    authorities = lambda: len(re.findall("authority_activated.*x509", house.text("mayfly.err")))
    activated = authorities()
    pushed = server.stat("sds.ALL.update_success")
    end = time.monotonic() + LOAD_SECONDS
    while time.monotonic() < end:
        begun = time.monotonic()
        who = request(port)
        took.append(time.monotonic() - begun)
        if who is None:
            failed.append(round(LOAD_SECONDS - (end - begun), 2))
        else:
            hashes.update(re.findall("Hash=([0-9a-f]+)", who))
        time.sleep(LOAD_PAUSE)
    fields = {
        "requests": len(took), "failed": len(failed), "client_certificates": len(hashes),
        "server_certificates": server.stat("sds.default.update_success"),
        "authorities_activated": authorities() - activated,
        "trust_pushed": server.stat("sds.ALL.update_success") - pushed,
        "refused_by_envoy": sum(e.stat("update_rejected") for e in (server, client)),
        "request_ms_p50": round(statistics.median(took) * 1000, 1),
    }
    say("rotated", seconds=LOAD_SECONDS, **fields)
    demand(not failed, f"requests failed at {failed[:10]}")
    demand(len(hashes) >= 8, "certificates did not rotate")
    demand(fields["authorities_activated"] >= 1, "no authority was rotated")
    demand(fields["refused_by_envoy"] == 0, "an envoy refused its secrets")


def as_peer_context(certificate=None, key=None):
    """A TLS client that shows whatever it is given and takes whomever it meets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def as_peer(*peer):
    return as_peer_context(*peer).wrap_socket


def keeps_trust_domains_apart(partner, stranger, shop, own_port):
    _, partner_port = shop.server("server-for-partners", matcher="spiffe://partner.example/buyer/")
    peers = {
        "partner": partner.leaf("spiffe://partner.example/buyer/1"),
        "partner_of_other_name": partner.leaf("spiffe://partner.example/seller/1"),
        "partner_as_one_of_ours": partner.leaf("spiffe://example.org/shop/client/task/x"),
        "stranger": stranger.leaf("spiffe://stranger.example/shop/client/1"),
        "stranger_as_one_of_ours": stranger.leaf("spiffe://example.org/shop/client/task/x"),
        "nobody": (None, None),
    }
    let_in = {"own": set(), "partner": set()}
    for name, peer in peers.items():
        for listener, port in (("own", own_port), ("partner", partner_port)):
            if request(port, as_peer(*peer)) is not None:
                let_in[listener].add(name)
    say("trust_domains", own=sorted(let_in["own"]), partner=sorted(let_in["partner"]), tried=sorted(peers))
    demand(let_in == {"own": set(), "partner": {"partner"}}, "the wrong peers were let in")


def resumes(port, peer, after=lambda: None):
    """Whether a session of the peer's, TLS 1.2 and 1.3, is taken up again without its certificate being
    looked at."""
    taken = []
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = as_peer_context(*peer)
        context.minimum_version = context.maximum_version = version
        first = Connection(port, context.wrap_socket)
        first.get()
        session = first.socket.session
        first.close()
        after()
        second = Connection(port, lambda plain: context.wrap_socket(plain, session=session))
        second.get()
        taken.append(second.socket.session_reused)
        second.close()
    return taken


def resumes_nothing(house, shop, partner):
    """In the example. What Envoy does by itself is shown beside it, so that the switches are known to matter."""
    peer = partner.leaf("spiffe://partner.example/buyer/1")
    matcher = "spiffe://partner.example/buyer/"
    _, port = shop.server("server-as-shown", matcher)
    lax, lax_port = shop.server("server-that-resumes", matcher, resumes=True)
    pushes = lambda: lax.stat("sds.ALL.update_success")

    def push():
        client, _ = shop.client(f"client-to-end-{pushes()}", port)
        before = pushes()
        client.crash()
        house.wait("a pushed list", lambda: pushes() > before)

    found = {"example": resumes(port, peer), "default": resumes(lax_port, peer), "default_after_push": resumes(lax_port, peer, push)}
    say("resumed", **found)
    demand(found["example"] == [False, False], "the example resumes sessions")
    demand(all(found["default"]), "Envoy no longer resumes by default: the example's switches show nothing")
    demand(found["default_after_push"] == [False, False], "a session outlived a pushed list")


class Load(threading.Thread):
    """Requests one after the other: when each began, when it was over, whether it was answered."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.log, self.over = port, [], threading.Event()
        self.start()

    def run(self):
        while not self.over.is_set():
            begun = time.monotonic()
            answered = request(self.port) is not None
            self.log.append((begun, time.monotonic(), answered))
            time.sleep(0.001)


def refuses_an_ended_task(shop, server, server_port, number):
    """Milliseconds from the end of a task to the last answer and to the first refusal of a new connection;
    and, the first time, for how many seconds a connection that was there before went on."""
    client, port = shop.client(f"client-{number}", server_port)
    demand(request(port) is not None, "refused before the end")
    time.sleep(QUIET_SECONDS)
    live = Connection(port)
    live.get()
    live_since = time.monotonic()
    by_list = server.stat("ssl.fail_verify_error")
    load = Load(port)
    time.sleep(0.2)
    ended = time.monotonic()
    client.crash()
    first = lambda: next((n for n, (_, _, answered) in enumerate(load.log) if not answered), None)
    shop.house.wait("a refusal", lambda: first() is not None, seconds=REFUSAL_SECONDS)
    still = live_answers(live)
    shop.house.wait("more refusals", lambda: len(load.log) > first() + REFUSALS, seconds=REFUSAL_SECONDS)
    load.over.set()
    load.join(10)
    log = list(load.log)
    demand(all(answered for begun, _, answered in log if begun < ended), "refused while the task was alive")
    demand(not any(answered for _, _, answered in log[first():]), "let in after the first refusal")
    refused = server.stat("ssl.fail_verify_error") - by_list
    demand(refused >= REFUSALS, f"only {refused} refusals were the server's verdict on the certificate")
    demand(client.stat("ssl.handshake") > 0, "the client's envoy is gone")
    _, refused_at, _ = log[first()]
    last_answer = max((over for begun, over, answered in log if answered and over > ended), default=ended)
    milliseconds = lambda at: round((at - ended) * 1000, 1)
    demand(still, "a live connection was cut, which Envoy is not known to do")
    return milliseconds(last_answer), milliseconds(refused_at), until_cut(live, live_since) if number == 0 else None


def live_answers(live):
    try:
        live.get()
        return True
    except OSError:
        return False


def until_cut(live, since):
    """Seconds until `max_connection_duration` takes the connection away."""
    while time.monotonic() < since + 30:
        if not live_answers(live):
            return round(time.monotonic() - since, 1)
        time.sleep(0.1)
    raise RuntimeError("max_connection_duration did not cut the connection")


def rotation(house, partner, stranger):
    shop = Shop(house, Backend())
    server, server_port = shop.server("server")
    client, port = shop.client("client", server_port)
    shows_mtls(port)
    keeps_trust_domains_apart(partner, stranger, shop, server_port)
    rotates_under_load(house, server, client, port)


def ends(house, partner):
    shop = Shop(house, Backend())
    server, server_port = shop.server("server")
    _, port = shop.client("client", server_port)
    resumes_nothing(house, shop, partner)
    times = [refuses_an_ended_task(shop, server, server_port, number) for number in range(ENDS)]
    demand(request(port) is not None, "the task that did not end was refused")
    refusals = [refused for _, refused, _ in times]
    # The line that docs/verifiers.md is made from.
    print(json.dumps({
        "verifier": "envoy", "new_connection_ms": statistics.median(refusals), "all_ms": refusals,
        "last_answer_ms": [last for last, _, _ in times],
        "live_connection": "until max_connection_duration", "live_connection_s": times[0][2],
    }), flush=True)


def scenario(mayfly, work):
    partner, stranger = Authority(work, "partner"), Authority(work, "stranger")
    for part, lives in (
        # Everything that can change does, while somebody watches.
        (lambda house: rotation(house, partner, stranger), ("32s", "4s")),
        # Nothing but the end of a task can change anything.
        (lambda house: ends(house, partner), ("24h", "5m")),
    ):
        house = House(mayfly, f"{work}/{lives[0]}", partner.bundle(), lives)
        try:
            part(house)
        finally:
            house.stop()


def main():
    mayfly = os.path.abspath(os.environ["MAYFLY"])
    work = tempfile.mkdtemp(prefix="mayfly-envoy.")
    try:
        scenario(mayfly, work)
    except Exception as error:  # the one line that says what went wrong
        say("error", detail=f"{type(error).__name__}: {error}")
        for path in sorted(glob.glob(f"{work}/*/*.err")):
            with open(path, encoding="utf-8", errors="replace") as lines:
                print(f"--- {os.path.basename(path)}", *list(lines)[-5:], sep="\n", file=sys.stderr)
        return 1
    finally:
        if not os.environ.get("KEEP"):
            shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
