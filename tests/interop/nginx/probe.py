#!/usr/bin/env python3
"""nginx with the sidecar's files: rotation without a failed request, refusal after the end.

    probe.py PORT SERVER_KEYS CLIENT_KEYS HOLDER WORKDIR
"""

import pathlib
import re
import socket
import ssl
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import probe

port, server_keys, client_keys, holder, work = sys.argv[1:]
GET = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n"


def connect(keys, trust):
    context = ssl.create_default_context(cafile=f"{trust}/bundle.pem")
    # A SPIFFE server has no host name; whose server it is, the authority says.
    context.check_hostname = False
    # One file that holds both, so that they are of one moment.
    context.load_cert_chain(f"{keys}/credential-bundle.pem")
    plain = socket.create_connection(("127.0.0.1", int(port)), timeout=10)
    return context.wrap_socket(plain, server_hostname="server")


def ask(connection):
    """None if the answer is 200, else what went wrong."""
    try:
        connection.sendall(GET)
        answer = connection.recv(4096).decode(errors="replace")
    except OSError as error:
        return type(error).__name__
    return None if answer.startswith("HTTP/1.1 200 ") else (answer.splitlines() or ["closed"])[0]


def attempt(keys, trust):
    try:
        with connect(keys, trust) as connection:
            return ask(connection)
    except (OSError, ssl.SSLError) as error:
        return f"{type(error).__name__}: {error}"


def served():
    """The certificate that nginx shows."""
    with connect(client_keys, client_keys) as connection:
        return connection.getpeercert(binary_form=True)


requests = probe.rotations(lambda: attempt(client_keys, client_keys), served, 3)
loot = probe.steal(client_keys, work)
live = connect(loot, loot)
if problem := ask(live):
    probe.fail(f"the live connection does not work: {problem}")
refused_ms, words = probe.refusal(lambda: attempt(loot, loot), int(holder))
# nginx verifies when it shakes hands and never again; but a reload retires the old workers, and they
# close connections on which nothing is asked at that moment.
fate = probe.fate(lambda: ask(live) is None)
version = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
probe.report(
    server="nginx",
    version=re.search(r"nginx/(\S+)", version).group(1),
    rotations=3,
    requests=requests,
    failed=0,
    end_to_refusal_ms=refused_ms,
    refused_as=words,
    live_connection=fate,
)
