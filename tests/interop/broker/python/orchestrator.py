"""An orchestrator in Python: grpcio with the stubs of our own proto files against Mayfly's Broker API.

grpcio knows server names and no SPIFFE IDs, so the handshake is made by Python's ssl module, which checks
the chain; the ID is checked here; and grpcio speaks plainly to a socket in this very process, behind which
its octets go into the handshake's stream.
"""

import json
import os
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time

import grpc
import mayfly_reference_pb2 as mayfly
import rpc_error_details_pb2 as details
import rpc_status_pb2 as rpc
import spiffe_broker_pb2 as broker
import spiffe_broker_pb2_grpc as stubs
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from spiffe import WorkloadApiClient

SERVER = "spiffe://example.org/mayfly/broker"
HEADER = (("broker.spiffe.io", "true"),)
CALL_SECONDS = 10


def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


def expect(truth, what):
    if not truth:
        raise SystemExit("not as it should be: %s" % what)


def context():
    """Our X.509-SVID, and the bundle of our trust domain to judge the server by."""
    with WorkloadApiClient() as client:
        held = client.fetch_x509_context()
    svid = held.default_svid
    bundle = held.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    pem = serialization.Encoding.PEM
    key = svid.private_key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = b"".join(one.public_bytes(pem) for one in svid.cert_chain)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(
        cadata="".join(one.public_bytes(pem).decode() for one in bundle.x509_authorities)
    )
    tls.set_alpn_protocols(["h2"])
    with tempfile.NamedTemporaryFile() as file:
        file.write(key + chain)
        file.flush()
        tls.load_cert_chain(file.name)
    return tls, str(svid.spiffe_id)


def shake(tls, path):
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(path)
    stream = tls.wrap_socket(raw)
    leaf = x509.load_der_x509_certificate(stream.getpeercert(binary_form=True))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    ids = names.get_values_for_type(x509.UniformResourceIdentifier)
    expect(ids == [SERVER], "the server is %s" % ids)
    say("mtls", server=ids[0], version=stream.version())
    return stream


def pump(plain, stream):
    """Carries octets both ways until either end is closed. One thread, because TLS has one state."""
    import selectors

    plain.setblocking(False)
    stream.setblocking(False)
    to_plain, to_stream = bytearray(), bytearray()
    with selectors.DefaultSelector() as ready:
        ready.register(plain, selectors.EVENT_READ)
        ready.register(stream, selectors.EVENT_READ)
        while True:
            for out, octets in ((plain, to_plain), (stream, to_stream)):
                while octets:
                    try:
                        del octets[: out.send(octets)]
                    except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                        break
                    except OSError:
                        return
            moved = False
            for source, octets in ((plain, to_stream), (stream, to_plain)):
                try:
                    read = source.recv(65536)
                except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    continue
                except OSError:
                    return
                if not read:
                    plain.close()
                    stream.close()
                    return
                octets += read
                moved = True
            if not moved:
                # What could not be sent is tried again soon; nothing is lost, and this is a test.
                ready.select(0.005 if to_plain or to_stream else None)


def channel(folder):
    tls, own = context()
    say("own", spiffe_id=own)
    path = os.environ["SPIFFE_BROKER_SOCKET"].removeprefix("unix://")
    stream = shake(tls, path)
    door = socket.socket(socket.AF_UNIX)
    door.bind(os.path.join(folder, "s"))
    door.listen(1)

    def serve():
        plain, _ = door.accept()
        pump(plain, stream)

    threading.Thread(target=serve, daemon=True).start()
    return grpc.insecure_channel("unix:" + os.path.join(folder, "s"))


def packed(message):
    reference = broker.WorkloadReference()
    reference.reference.Pack(message)
    return reference


def reason(error):
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            info = details.ErrorInfo()
            expect(rpc.Status.FromString(value).details[0].Unpack(info), "details are an ErrorInfo")
            return info.domain, info.reason, info.metadata["code"]
    return None


def token(api, reference):
    asked = broker.FetchJWTSVIDRequest(reference=reference, audience=["interop"])
    answer = api.FetchJWTSVID(asked, metadata=HEADER, timeout=CALL_SECONDS)
    return answer.svids[0]


def main(pid, task, other):
    with tempfile.TemporaryDirectory() as folder:
        api = stubs.APIStub(channel(folder))
        references = {
            "pid": packed(broker.WorkloadPIDReference(pid=pid)),
            "task": packed(mayfly.TaskReference(id=task)),
        }
        name, streams = "spiffe://example.org/job/task/" + task, {}
        for how, reference in references.items():
            asked = broker.SubscribeToX509SVIDRequest(reference=reference)
            streams[how] = api.SubscribeToX509SVID(asked, metadata=HEADER, timeout=30)
            svid = next(streams[how]).svids[0]
            leaf = x509.load_der_x509_certificate(svid.x509_svid)
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            ids = names.get_values_for_type(x509.UniformResourceIdentifier)
            expect(ids == [name] and svid.spiffe_id == name, "the leaf names %s" % ids)
            expect(svid.bundle and svid.x509_svid_key, "a bundle and a key")
            got = token(api, reference)
            expect(got.spiffe_id == name and got.svid.count(".") == 2, "a token for it")
            say("x509_and_jwt", by=how, spiffe_id=name)
        for bundles in (
            api.SubscribeToX509Bundles(
                broker.SubscribeToX509BundlesRequest(reference=references["task"]), metadata=HEADER, timeout=30
            ),
            api.SubscribeToJWTBundles(
                broker.SubscribeToJWTBundlesRequest(reference=references["pid"]), metadata=HEADER, timeout=30
            ),
        ):
            expect("spiffe://example.org" in next(bundles).bundles, "the own bundle")
            bundles.cancel()
        os.kill(pid, signal.SIGKILL)
        killed, ends = time.monotonic(), {}
        for how, stream in streams.items():
            try:
                next(stream)
                raise SystemExit("not as it should be: a stream goes on")
            except grpc.RpcError as error:
                ends[how] = round((time.monotonic() - killed) * 1000, 1)
                expect(error.code() == grpc.StatusCode.NOT_FOUND, "the code is %s" % error)
                expect(reason(error)[:2] == ("spiffe.io", "WORKLOAD_NOT_FOUND"), "the reason %s" % (reason(error),))
        for reference in references.values():
            try:
                token(api, reference)
                raise SystemExit("not as it should be: a token for the dead")
            except grpc.RpcError as error:
                expect(error.code() == grpc.StatusCode.NOT_FOUND, "the code is %s" % error)
        served = token(api, packed(broker.WorkloadPIDReference(pid=other)))
        expect(served.spiffe_id != name, "another workload")
        say("ok", kill_to_end_ms=ends, connection="still serves " + served.spiffe_id)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
