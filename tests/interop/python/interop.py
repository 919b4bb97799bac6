"""The interop workload in Python: py-spiffe and spiffe-tls against Mayfly.

It fetches, validates, talks mTLS with itself, sees a rotation or the end of its task, and says so
in the vocabulary of ../README.md: one JSON object a line.
"""

import argparse
import json
import queue
import re
import sys
import threading
import warnings

from cryptography import x509
from OpenSSL import SSL, crypto
from spiffe import JwtSource, JwtSvid, WorkloadApiClient, X509Source
from spiffe.errors import PySpiffeError
from spiffetls import ListenOptions, ServerTlsMode, dial, listen
from spiffetls.tlsconfig.authorize import authorize_member_of

AUDIENCE = "interop"
CALL_SECONDS = 10

# spiffe-tls itself reads the accessors that py-spiffe calls deprecated.
warnings.simplefilter("ignore", DeprecationWarning)


def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


def code_of(error):
    """py-spiffe keeps only the text of a gRPC error; the code's name is in it."""
    found = re.search(r"StatusCode\.([A-Z_]+)", str(error))
    return found.group(1) if found else "UNKNOWN"


def serial_of(svid):
    return format(svid.leaf.serial_number, "x")


def say_x509(svid):
    not_after = int(svid.leaf.not_valid_after_utc.timestamp())
    say("x509", spiffe_id=str(svid.spiffe_id), serial=serial_of(svid), not_after=not_after)


def verify_chain(svid, bundle):
    """py-spiffe has no chain check of its own: pyOpenSSL's is the one that spiffe-tls relies on."""
    store = crypto.X509Store()
    for authority in bundle.x509_authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))
    chain = [crypto.X509.from_cryptography(c) for c in svid.cert_chain]
    crypto.X509StoreContext(store, chain[0], chain[1:]).verify_certificate()


def fetch_x509(client):
    context = client.fetch_x509_context(timeout=CALL_SECONDS)
    svid = context.default_svid
    say_x509(svid)
    for bundle in sorted(context.x509_bundle_set.bundles, key=lambda b: b.trust_domain.name):
        say("bundle", kind="x509", trust_domain=bundle.trust_domain.name)
    verify_chain(svid, context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain))
    say("validated", what="x509")


def fetch_jwt(client):
    with JwtSource(client, timeout_in_seconds=CALL_SECONDS) as source:
        fetched = source.fetch_svid({AUDIENCE}, timeout=CALL_SECONDS)
        say("jwt", spiffe_id=str(fetched.spiffe_id), exp=fetched.expiry)
        bundle = source.get_bundle_for_trust_domain(fetched.spiffe_id.trust_domain)
        say("bundle", kind="jwt", trust_domain=bundle.trust_domain.name)
        JwtSvid.parse_and_validate(fetched.token, bundle, {AUDIENCE})
        say("validated", what="jwt")
    client.validate_jwt_svid(fetched.token, AUDIENCE, timeout=CALL_SECONDS)
    say("validated", what="jwt_online")
    return fetched.token


def peer_id(connection):
    names = connection.get_peer_certificate().to_cryptography().extensions
    sans = names.get_extension_for_class(x509.SubjectAlternativeName).value
    return sans.get_values_for_type(x509.UniformResourceIdentifier)[0]


def mtls(source):
    """Both ends of one spiffe-tls connection, each asking the other for a certificate."""
    authorize = authorize_member_of(source.get_x509_context().default_svid.spiffe_id.trust_domain)
    listener = listen("127.0.0.1:0", source, ListenOptions(ServerTlsMode.MTLS, authorize))
    seen = queue.Queue()

    def serve():
        try:
            connection, _ = listener.accept()
            connection.do_handshake()
            connection.send(connection.recv(16))
            seen.put(peer_id(connection))
        except (SSL.Error, OSError) as error:
            seen.put(error)

    threading.Thread(target=serve, daemon=True).start()
    connection = dial("127.0.0.1:%d" % listener.getsockname()[1], source, authorize_fn=authorize)
    connection.send(b"mayfly")
    echoed = connection.recv(16)
    client_seen_by_server = seen.get(timeout=CALL_SECONDS)
    if isinstance(client_seen_by_server, Exception):
        raise client_seen_by_server
    if echoed != b"mayfly" or client_seen_by_server != peer_id(connection):
        raise RuntimeError("the two sides of the connection disagree")
    say("mtls", ok=True, peer=client_seen_by_server)
    connection.close()
    listener.close()


def until_rotated(client, patience):
    """A rotation is a second certificate on one and the same stream."""
    seen = queue.Queue()
    watch = client.stream_x509_contexts(lambda c: seen.put(c.default_svid), seen.put)
    first = None
    while True:
        item = seen.get(timeout=patience)
        if isinstance(item, Exception):
            raise item
        if first is not None and serial_of(item) != serial_of(first):
            break
        first = first or item
    watch.cancel()
    say_x509(item)
    say("rotated", serial=serial_of(item))


def until_ended(client, source, token, patience):
    """With its retries on, py-spiffe never tells: the watch without them hands the code out."""
    ended, alive = queue.Queue(), queue.Queue()
    client.stream_x509_contexts(alive.put, ended.put, retry_connect=False)
    alive.get(timeout=CALL_SECONDS)
    say("waiting")
    try:
        error = ended.get(timeout=patience)
    except queue.Empty:
        say("unseen")
        return
    kept = "closed" if source.is_closed() else "keeps the last SVID"
    say("ended", code=code_of(error), detail="%s; X509Source %s" % (error, kept))
    refused("jwt", lambda: client.fetch_jwt_svid({AUDIENCE}, timeout=CALL_SECONDS))
    refused("jwt_online", lambda: client.validate_jwt_svid(token, AUDIENCE, timeout=CALL_SECONDS))


def refused(what, call):
    try:
        call()
        say("error", detail="%s was still granted after the end" % what)
    except PySpiffeError as error:
        say("refused", what=what, code=code_of(error), detail=str(error))


def main():
    parser = argparse.ArgumentParser()
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--once", action="store_true")
    mode.add_argument("--until-rotated", action="store_true")
    mode.add_argument("--until-ended", action="store_true")
    parser.add_argument("--patience", type=float, default=60)
    args = parser.parse_args()
    with WorkloadApiClient() as client:
        fetch_x509(client)
        token = fetch_jwt(client)
        with X509Source(client, timeout_in_seconds=CALL_SECONDS) as source:
            mtls(source)
            if args.until_rotated:
                until_rotated(client, args.patience)
            if args.until_ended:
                until_ended(client, source, token, args.patience)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # the one line that tells the checker what went wrong
        say("error", detail="%s: %s" % (type(error).__name__, error))
        sys.exit(1)
