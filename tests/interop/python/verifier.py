#!/usr/bin/env python3
"""A relying party for benches/verifiers, in the line protocol of ../README.md.

verifier.py tls plain|crl KEYS     a TLS server; with crl, OpenSSL looks each client up in KEYS/crl.pem
verifier.py jwt offline|online     judges tokens from standard input with py-spiffe
"""

import os
import pathlib
import platform
import signal
import socket
import ssl
import sys
import threading

AUDIENCE = "verifiers"


def load(keys, check):
    """One moment of the files: the link is read once. Lists cannot be unloaded, so each has a context."""
    version = pathlib.Path(keys) / os.readlink(pathlib.Path(keys) / "..data")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(version / "credential-bundle.pem")
    context.load_verify_locations(version / "bundle.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # A resumed session is not verified again.
    context.options |= ssl.OP_NO_TICKET
    if check:
        context.load_verify_locations(version / "crl.pem")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def serve(keys, check):
    current = [load(keys, check)]
    changed = threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: changed.set())

    def reload():
        while changed.wait():
            changed.clear()
            current[0] = load(keys, check)

    def echo(plain):
        try:
            with current[0].wrap_socket(plain, server_side=True) as connection:
                while octets := connection.recv(4096):
                    connection.sendall(octets)
        except OSError:
            pass  # Refused, or gone.

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=reload, daemon=True).start()

    def accept():
        while True:
            threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print("READY 127.0.0.1:%d" % listener.getsockname()[1], flush=True)
    sys.stdin.read()  # Python runs its signal handlers here, between two reads.


def judge(online):
    from spiffe import JwtSource, JwtSvid, WorkloadApiClient

    with WorkloadApiClient() as client, JwtSource(client, timeout_in_seconds=10) as source:
        own = source.fetch_svid({AUDIENCE}, timeout=10)
        print("READY -", flush=True)
        for line in sys.stdin:
            try:
                if online:
                    client.validate_jwt_svid(line.strip(), AUDIENCE, timeout=10)
                else:
                    bundle = source.get_bundle_for_trust_domain(own.spiffe_id.trust_domain)
                    JwtSvid.parse_and_validate(line.strip(), bundle, {AUDIENCE})
                print("ACCEPTED", flush=True)
            except Exception as error:  # whatever it is, the token is not accepted
                print("REFUSED", str(error).replace("\n", " "), flush=True)


print("VERSION", "Python", platform.python_version(), ssl.OPENSSL_VERSION, flush=True)
match sys.argv[1:]:
    case ["tls", mode, keys]:
        serve(keys, mode == "crl")
    case ["jwt", mode]:
        judge(mode == "online")
    case _:
        sys.exit(__doc__)
