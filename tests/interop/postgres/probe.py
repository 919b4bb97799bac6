#!/usr/bin/env python3
"""PostgreSQL with the sidecar's files: rotation without a failed login, refusal after the end.

    probe.py PORT SERVER_KEYS CLIENT_KEYS HOLDER WORKDIR
"""

import hashlib
import os
import pathlib
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import probe

port, server_keys, client_keys, holder, work = sys.argv[1:]


def arguments(keys):
    # Not `verify-full`: a SPIFFE server has no host name, and whose server it is, the authority says.
    return [
        "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align",
        f"host=127.0.0.1 port={port} user=task dbname=postgres connect_timeout=10 sslmode=verify-ca"
        f" sslcert={keys}/svid.pem sslkey={keys}/svid_key.pem sslrootcert={keys}/bundle.pem",
    ]


def login(keys, query="select current_user"):
    done = subprocess.run(arguments(keys) + ["-c", query], capture_output=True, text=True, timeout=20)
    return done.stdout.strip(), done.returncode and (done.stderr.strip().splitlines() or ["?"])[-1]


def attempt(keys):
    user, problem = login(keys)
    return problem or (None if user == "task" else f"logged in as {user}")


def served():
    """The certificate in force, as the server reads it."""
    return hashlib.sha256(pathlib.Path(server_keys, "svid.pem").read_bytes()).hexdigest()


peer, problem = login(client_keys, "select ssl, client_dn from pg_stat_ssl where pid = pg_backend_pid()")
if problem or not peer.startswith("t|/O=Mayfly"):
    probe.fail(f"the server sees `{peer}` {problem or ''}")
logins = probe.rotations(lambda: attempt(client_keys), served, 3)
loot = probe.steal(client_keys, work)
live = subprocess.Popen(arguments(loot), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask():
    live.stdin.write("select current_user;\n")
    live.stdin.flush()
    return live.stdout.readline().strip() == "task"


if not ask():
    probe.fail("the live connection does not work")
refused_ms, words = probe.refusal(lambda: attempt(loot), int(holder))
fate = probe.fate(ask)
live.stdin.close()
live.wait()
version = subprocess.run(["postgres", "--version"], capture_output=True, text=True, check=True).stdout
probe.report(
    server="postgres",
    version=version.split()[2],
    rotations=3,
    requests=logins,
    failed=0,
    client_dn=peer.split("|")[1],
    end_to_refusal_ms=refused_ms,
    refused_as=words,
    live_connection=fate,
)
