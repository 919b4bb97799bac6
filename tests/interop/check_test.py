"""The checker itself, held against planted faults: a judge that passes everything is worse than none."""

import time
import unittest

import check

ID = "spiffe://example.org/interop/task/abc"


def clean(mode):
    soon = int(time.time()) + 9
    events = [{"event": "x509", "spiffe_id": ID, "serial": "a1", "not_after": soon}]
    events += [{"event": "bundle", "kind": "x509", "trust_domain": d} for d in (check.TRUST_DOMAIN, check.FEDERATED)]
    events += [{"event": "jwt", "spiffe_id": ID, "exp": soon}]
    events += [{"event": "bundle", "kind": "jwt", "trust_domain": check.TRUST_DOMAIN}]
    events += [{"event": "validated", "what": what} for what in sorted(check.VALIDATES_ALL)]
    events += [{"event": "mtls", "ok": True, "peer": ID}]
    if mode == "rotated":
        events += [{"event": "x509", "spiffe_id": ID, "serial": "b2", "not_after": soon}]
        events += [{"event": "rotated", "serial": "b2"}]
    if mode == "ended":
        events += [{"event": "waiting"}, {"event": "ended", "code": "PERMISSION_DENIED", "detail": ""}]
        events += [{"event": "refused", "what": w, "code": "PERMISSION_DENIED", "detail": ""} for w in ("jwt", "jwt_online")]
    return events


def complaints(mode, events, language="python"):
    return list(check.complaints(language, mode, events))


class Check(unittest.TestCase):
    def test_a_clean_run_has_no_complaint(self):
        for mode in ("once", "rotated", "ended"):
            self.assertEqual(complaints(mode, clean(mode)), [])

    def test_every_event_is_needed(self):
        for mode in ("rotated", "ended"):
            events = clean(mode)
            for at, event in enumerate(events):
                if event["event"] == "waiting":
                    continue  # For the script, not for the judge.
                with self.subTest(mode=mode, missing=event):
                    self.assertTrue(complaints(mode, events[:at] + events[at + 1 :]))

    def test_every_planted_fault_is_seen(self):
        faults = [
            ("once", "x509", "spiffe_id", "spiffe://example.org/other/task/abc"),
            ("once", "x509", "not_after", int(time.time()) + 60),
            ("once", "jwt", "exp", int(time.time()) + 60),
            ("once", "jwt", "spiffe_id", ID + "d"),
            ("once", "mtls", "ok", False),
            ("once", "mtls", "peer", ID + "d"),
            ("rotated", "rotated", "serial", "a1"),
            ("ended", "ended", "code", "UNAVAILABLE"),
            ("ended", "refused", "code", "UNKNOWN"),
        ]
        for mode, name, field, value in faults:
            with self.subTest(name=name, field=field):
                events = clean(mode)
                next(event for event in events if event["event"] == name)[field] = value
                self.assertTrue(complaints(mode, events))

    def test_an_error_is_a_complaint_whatever_else_went_well(self):
        self.assertTrue(complaints("once", clean("once") + [{"event": "error", "detail": "jwt was still granted"}]))

    def test_an_end_that_was_not_seen_is_a_complaint(self):
        events = [e for e in clean("ended") if e["event"] not in ("ended", "refused")]
        self.assertTrue(complaints("ended", events + [{"event": "unseen"}]))

    def test_rust_must_refuse_handshakes_too(self):
        self.assertTrue(complaints("ended", clean("ended"), "rust"))

    def test_a_task_is_found_anywhere_in_a_listing(self):
        self.assertTrue(check.names({"tasks": [{"task": "abc"}]}, "abc"))
        self.assertFalse(check.names({"tasks": [{"task": "abcd", "abc": 1}]}, "abc"))


if __name__ == "__main__":
    unittest.main()
