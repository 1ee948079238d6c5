"""Who may ask: API keys, session tokens, an instance's certificates and the exchange of these for tokens."""

import base64
import datetime
import functools
import hashlib
import json
import re
import secrets
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

TENANCY = "ocid1.tenancy.oc1..test"
USER = "ocid1.user.oc1..test"
REGION = "us-phoenix-1"
SKEW = 300  # seconds by which the client's clock may differ
TOKEN_SECONDS = 3600.0
READ_HEADERS = ["date", "(request-target)", "host"]
BODY_HEADERS = ["content-length", "content-type", "x-content-sha256"]


class Refused(Exception):
    """The signature does not hold; says why."""


class Identity:
    """One tenancy with one user and one instance. Tokens carry the public key they are for."""

    def __init__(self) -> None:
        self.user_key, self.instance_key = _keys()
        self.clock = 0.0  # seconds by which the server's clock is ahead
        self.token_seconds = TOKEN_SECONDS
        self.tokens_given = 0
        self.certificate = _certificate(self.instance_key)
        self._secret = secrets.token_hex(32)
        self._keys = {self.key_id: self.user_key.public_key()}
        self._keys[f"{TENANCY}/fed-x509/{_fingerprint(self.certificate)}"] = self.instance_key.public_key()
        self._revoked: set[str] = set()

    @property
    def key_id(self) -> str:
        return f"{TENANCY}/{USER}/{fingerprint(self.user_key)}"

    def token(self, key: rsa.RSAPublicKey, seconds: float | None = None) -> str:
        """A session token for the holder of the private half of `key`."""
        self.tokens_given += 1
        now = int(time.time() + self.clock)
        claims = {
            "iat": now,
            "exp": now + int(seconds or self.token_seconds),
            "key": public_pem(key),
            "jti": secrets.token_hex(8),
        }
        claims |= {"res_tenant": TENANCY, "res_compartment": TENANCY, "sub": USER}
        return jwt.encode(claims, self._secret, algorithm="HS256")

    def revoke(self, token: str) -> None:
        self._revoked.add(token)

    def verify(self, method: str, target: str, headers: Mapping[str, str]) -> str:
        """The key id that signed the request. Raises Refused."""
        fields: dict[str, str] = dict(re.findall(r'(\w+)="([^"]*)"', headers.get("authorization", "")))
        if not headers.get("authorization", "").startswith("Signature ") or fields.get("algorithm") != "rsa-sha256":
            raise Refused("the request is not signed with rsa-sha256")
        if fields.get("version") != "1":
            raise Refused("the signature's version is not 1")
        signed = fields.get("headers", "").split()
        needed = [name for name in READ_HEADERS if name != "host" or "fed-x509" not in fields.get("keyId", "")]
        if "x-content-sha256" in headers or method == "POST":
            needed += BODY_HEADERS
        if missing := [name for name in needed if name not in signed]:
            raise Refused(f"the signature leaves out {', '.join(missing)}")
        self._check_date(headers.get("date", ""))
        lines = [
            f"(request-target): {method.lower()} {target}" if name == "(request-target)" else f"{name}: {headers[name]}"
            for name in signed
        ]
        try:
            self._key(fields["keyId"]).verify(
                base64.b64decode(fields["signature"]), "\n".join(lines).encode(), padding.PKCS1v15(), hashes.SHA256()
            )
        except InvalidSignature:
            raise Refused("the signature does not fit the request") from None
        return fields["keyId"]

    def exchange(self, body: bytes) -> str:
        """A token for an instance that showed its certificate and a new public key."""
        asked = json.loads(body)
        shown = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        if asked["certificate"] != _bare(shown):
            raise Refused("this is not the instance's certificate")
        key = serialization.load_der_public_key(base64.b64decode(asked["publicKey"]))
        assert isinstance(key, rsa.RSAPublicKey)
        return self.token(key)

    def renew(self, key_id: str, body: bytes) -> str:
        """A new token for the key of the current one."""
        current = json.loads(body)["currentToken"]
        if key_id != f"ST${current}":
            raise Refused("the token is not the one that signed")
        return self.token(self._key(key_id))

    def metadata(self, path: str) -> str | None:
        """What the instance metadata service answers at `path`."""
        certificate = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        instance = {"region": "phx", "canonicalRegionName": REGION, "compartmentId": TENANCY, "shape": "VM.GPU.A10.1"}
        return {
            "instance": json.dumps(instance),
            "instance/region": "phx",
            "instance/canonicalRegionName": REGION,
            "identity/cert.pem": certificate,
            "identity/intermediate.pem": certificate,
            "identity/key.pem": private_pem(self.instance_key),
        }.get(path.strip("/"))

    def _key(self, key_id: str) -> rsa.RSAPublicKey:
        if key_id in self._keys:
            return self._keys[key_id]
        token = key_id.removeprefix("ST$")
        if token == key_id or token in self._revoked:
            raise Refused("the key id is not known")
        try:
            claims: dict[str, Any] = jwt.decode(
                token, self._secret, algorithms=["HS256"], options={"verify_exp": False, "verify_iat": False}
            )
        except jwt.InvalidTokenError:
            raise Refused("the token is not one of ours") from None
        if claims["exp"] < time.time() + self.clock:
            raise Refused("the token has expired")
        key = serialization.load_pem_public_key(claims["key"].encode())
        assert isinstance(key, rsa.RSAPublicKey)
        return key

    def _check_date(self, date: str) -> None:
        try:
            told = parsedate_to_datetime(date).timestamp()
        except (TypeError, ValueError):
            raise Refused("the Date header is no date") from None
        if abs(told - time.time() - self.clock) > SKEW:
            raise Refused(f"the Date header differs from the server's clock by more than {SKEW} seconds")


def write_config(folder: Path, identity: Identity, profile: str = "DEFAULT", token: str | None = None) -> Path:
    """A config file with its key, as `oci setup config` or `oci session authenticate` leave them."""
    folder.mkdir(parents=True, exist_ok=True)
    key_file, token_file, config = folder / f"{profile}.pem", folder / f"{profile}.token", folder / "config"
    key_file.touch(0o600)
    key_file.write_text(private_pem(identity.user_key))
    lines = [f"[{profile}]", f"user={USER}", f"fingerprint={fingerprint(identity.user_key)}", f"tenancy={TENANCY}"]
    lines += [f"region={REGION}", f"key_file={key_file}"]
    if token is not None:
        token_file.touch(0o600)
        token_file.write_text(token)
        lines.append(f"security_token_file={token_file}")
    config.touch(0o600)
    with config.open("a") as file:
        file.write("\n".join(lines) + "\n")
    return config


@functools.cache
def _keys() -> tuple[rsa.RSAPrivateKey, rsa.RSAPrivateKey]:
    """Made once a process: making them takes longer than most tests."""
    return make_key(), make_key()


def make_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def private_pem(key: rsa.RSAPrivateKey) -> str:
    kind = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()).decode()


def public_pem(key: rsa.RSAPublicKey) -> str:
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, kind).decode()


def fingerprint(key: rsa.RSAPrivateKey) -> str:
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    digest = hashlib.md5(key.public_key().public_bytes(serialization.Encoding.DER, kind), usedforsecurity=False)
    return ":".join(f"{byte:02x}" for byte in digest.digest())


def _fingerprint(certificate: x509.Certificate) -> str:
    return ":".join(f"{byte:02X}" for byte in certificate.fingerprint(hashes.SHA1()))


def _certificate(key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "ocid1.instance.oc1.phx.test"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, f"opc-tenant:{TENANCY}"),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
    return builder.not_valid_after(now + datetime.timedelta(days=2)).sign(key, hashes.SHA256())


def _bare(pem: str) -> str:
    return "".join(line for line in pem.splitlines() if not line.startswith("-----"))
