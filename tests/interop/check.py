#!/usr/bin/env python3
"""Reads the events of one interop program and says what is missing or wrong.

    check.py LANGUAGE MODE EVENTS     MODE is once, rotated or ended
    check.py --task EVENTS            prints the task that the last X.509-SVID belongs to
    check.py --lists TASK             exit 0 if the JSON on stdin names TASK anywhere
    check.py --has EVENT EVENTS       exit 0 once EVENT has been seen
"""

import json
import re
import sys
import time

TRUST_DOMAIN = "example.org"
FEDERATED = "example-federated.org"
IDENTITY = re.compile(r"spiffe://example\.org/interop/task/[A-Za-z0-9._-]+")
TTL_SECONDS = 10

# spiffe-helper is no SDK: it writes files and neither validates online nor talks TLS.
VALIDATES = {"helper": {"x509", "jwt"}}
VALIDATES_ALL = {"x509", "jwt", "jwt_online"}
HAS_MTLS = {"python", "go", "java", "rust", "node"}
SEES_FEDERATED = HAS_MTLS
# What has to be refused once the task has ended.
REFUSED = {"helper": set(), "rust": {"jwt", "jwt_online", "handshake"}}
REFUSED_ALL = {"jwt", "jwt_online"}


def read(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def named(events, name):
    return [event for event in events if event["event"] == name]


def common(language, events):
    yield from (f"error: {event['detail']}" for event in named(events, "error"))
    svids, tokens = named(events, "x509"), named(events, "jwt")
    if not svids or not tokens:
        yield "no X.509-SVID or no JWT-SVID came"
        return
    for event in svids + tokens:
        if not IDENTITY.fullmatch(event["spiffe_id"]):
            yield f"unexpected identity {event['spiffe_id']}"
    # One process, one task: only spiffe-helper is started anew in between.
    if language != "helper" and len({event["spiffe_id"] for event in svids + tokens}) != 1:
        yield "one process was given several identities"
    for end in [event["not_after"] for event in svids] + [event["exp"] for event in tokens]:
        if end > time.time() + TTL_SECONDS + 1:
            yield f"{end} is later than the profile's lifetime allows"
    missing = VALIDATES.get(language, VALIDATES_ALL) - {event["what"] for event in named(events, "validated")}
    if missing:
        yield f"not validated: {sorted(missing)}"
    for kind in ("x509", "jwt"):
        domains = {e["trust_domain"] for e in named(events, "bundle") if e.get("kind") == kind}
        wanted = {TRUST_DOMAIN} | ({FEDERATED} if kind == "x509" and language in SEES_FEDERATED else set())
        if not wanted <= domains:
            yield f"{kind} bundles of {sorted(wanted - domains)} are missing"
    if language in HAS_MTLS:
        peers = [event["peer"] for event in named(events, "mtls") if event["ok"]]
        if peers != [svids[0]["spiffe_id"]]:
            yield f"mTLS showed {peers}"


def rotated(events):
    serials = [event["serial"] for event in named(events, "rotated")]
    if len(serials) != 1:
        yield "no rotation was seen"
    elif serials[0] == named(events, "x509")[0]["serial"]:
        yield "the rotation brought the same serial number"
    if len({event["serial"] for event in named(events, "x509")}) < 2:
        yield "there was only one certificate"


def ended(language, events):
    codes = [event["code"] for event in named(events, "ended")]
    if codes != ["PERMISSION_DENIED"]:
        yield f"the end was shown as {codes or [event['event'] for event in events[-1:]]}"
        return
    refusals = {event["what"]: event["code"] for event in named(events, "refused")}
    missing = REFUSED.get(language, REFUSED_ALL) - refusals.keys()
    if missing:
        yield f"not refused after the end: {sorted(missing)}"
    for what, code in refusals.items():
        # A holder without a task is denied; a token of an ended task is not valid.
        allowed = {"jwt": {"PERMISSION_DENIED"}, "jwt_online": {"PERMISSION_DENIED", "INVALID_ARGUMENT"}}
        if code not in allowed.get(what, {code}):
            yield f"{what} was refused with {code}"


def complaints(language, mode, events):
    yield from common(language, events)
    if mode == "rotated":
        yield from rotated(events)
    if mode == "ended":
        yield from ended(language, events)


def names(value, wanted):
    if isinstance(value, dict):
        return any(names(item, wanted) for item in value.values())
    if isinstance(value, list):
        return any(names(item, wanted) for item in value)
    return value == wanted


def main(args):
    match args:
        case ["--task", path]:
            print(named(read(path), "x509")[-1]["spiffe_id"].rsplit("/", 1)[1])
        case ["--lists", task]:
            return 0 if names(json.load(sys.stdin), task) else 1
        case ["--has", event, path]:
            with open(path, encoding="utf-8") as lines:
                return 0 if any(line.startswith("{") and f'"{event}"' in line for line in lines) else 1
        case [language, mode, path]:
            found = list(complaints(language, mode, read(path)))
            for complaint in found:
                print(f"{language} {mode}: {complaint}")
            return 1 if found else 0
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
