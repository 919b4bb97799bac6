"""Peers of other trust domains: authorities and certificates made with openssl."""

import base64
import json
import pathlib
import subprocess

EXTENSIONS = """
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectAltName = URI:spiffe://partner.example
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = critical, URI:%s
"""


class Authority:
    """One that signs whatever it is asked for, in `folder`."""

    def __init__(self, folder, name):
        self.folder = pathlib.Path(folder) / name
        self.folder.mkdir()
        self.leaves = 0
        self.key = self.folder / "ca.key"
        self.certificate = self.folder / "ca.pem"
        self._extensions("spiffe://partner.example/nobody")
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
            "-subj", f"/O={name}", "-keyout", self.key, "-out", self.certificate,
            "-config", self.folder / "x.cnf", "-extensions", "authority",
        )

    def leaf(self, spiffe_id):
        """Paths of a certificate for `spiffe_id` and of its key."""
        self.leaves += 1
        certificate, key, request = (self.folder / f"leaf-{self.leaves}.{kind}" for kind in ("pem", "key", "csr"))
        self._extensions(spiffe_id)
        self._openssl(
            "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/O=leaf",
            "-keyout", key, "-out", request, "-config", self.folder / "x.cnf",
        )
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial",
            "-days", "1", "-out", certificate, "-extfile", self.folder / "x.cnf", "-extensions", "leaf",
        )
        return certificate, key

    def bundle(self):
        """A SPIFFE bundle document with this authority."""
        body = self.certificate.read_text().split("-----")[2]
        point = self._openssl("pkey", "-in", self.key, "-pubout", "-outform", "DER")[-64:]
        url = lambda octets: base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
        key = {"kty": "EC", "crv": "P-256", "x": url(point[:32]), "y": url(point[32:])}
        entry = {**key, "use": "x509-svid", "x5c": ["".join(body.split())]}
        return json.dumps({"spiffe_sequence": 1, "spiffe_refresh_hint": 300, "keys": [entry]})

    def _extensions(self, spiffe_id):
        text = "[req]\ndistinguished_name = name\n[name]\n" + EXTENSIONS % spiffe_id
        (self.folder / "x.cnf").write_text(text)

    @staticmethod
    def _openssl(*args):
        done = subprocess.run(["openssl", *map(str, args)], capture_output=True, timeout=30, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"openssl {args[0]}: {done.stderr.decode()}")
        return done.stdout
