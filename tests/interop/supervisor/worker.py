"""A workload on py-spiffe, in the lines of README.md."""

import base64
import json
import sys
import time
import warnings

from cryptography.hazmat.primitives.serialization import Encoding
from spiffe import WorkloadApiClient

AUDIENCE = "supervisor"
CALL_SECONDS = 10
warnings.simplefilter("ignore", DeprecationWarning)


def say(**line):
    print(json.dumps(line), flush=True)


def refused(ask):
    try:
        ask()
    except Exception:  # whatever it is, nothing was given
        return True
    return False


say(ready=True)
go = sys.stdin.readline()
if not go:
    sys.exit()
ends = int(go.removeprefix("go "))
client = WorkloadApiClient()
svid = client.fetch_x509_svid(timeout=CALL_SECONDS)
t_x509 = time.monotonic_ns()
token = client.fetch_jwt_svid({AUDIENCE}, timeout=CALL_SECONDS).token
t_jwt = time.monotonic_ns()
leaf = base64.b64encode(svid.leaf.public_bytes(Encoding.DER)).decode()
say(t_x509=t_x509, t_jwt=t_jwt, leaf=leaf, token=token)
if ends:
    time.sleep(max(0, ends - time.monotonic_ns()) / 1e9)
    say(bye=time.monotonic_ns())
else:
    for line in sys.stdin:
        if line.strip() == "again":
            x509 = refused(lambda: client.fetch_x509_svid(timeout=CALL_SECONDS))
            jwt = refused(lambda: client.fetch_jwt_svid({AUDIENCE}, timeout=CALL_SECONDS))
            say(refused=x509 and jwt)
