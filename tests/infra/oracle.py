"""A stand-in for what an instance talks to: its metadata, and OCI's services, which check every signature.

One server on the loopback plays them all; endpoints differ by path. Signatures are checked with openssl against the
instance's certificate, for the exchange of a token, and against the key that was sent with it, for all else.
"""

import base64
import hashlib
import json
import re
import subprocess
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

TENANCY = "ocid1.tenancy.oc1..example"
INSTANCE = "ocid1.instance.oc1..example"
TOPIC = "ocid1.onstopic.oc1..example"
LOG = "ocid1.log.oc1..example"


def openssl(*words: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *words], input=stdin, capture_output=True, check=True).stdout


@dataclass
class Oracle:
    """What has been asked of OCI, and what it will say."""

    folder: Path
    objects: dict[str, bytes] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)  # instances, as they were terminated
    sessions: dict[str, Path] = field(default_factory=dict)  # token → the key it was given for
    messages: list[dict[str, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    tokens: int = 0
    fail: dict[str, int] = field(default_factory=dict)  # start of a path -> status it is answered with
    requests: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # signatures that did not hold
    url: str = ""
    one_by_one: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "Oracle":
        subject = f"/CN={INSTANCE}/OU=opc-certtype:instance/OU=opc-tenant:{TENANCY}"
        key, certificate = str(self.folder / "instance.key"), str(self.folder / "instance.pem")
        request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        openssl(*request, "-subj", subject, "-keyout", key, "-out", certificate)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"oracle": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def terminated(self) -> int:
        return len(self.ended)

    def metadata(self, node: int, path: str) -> bytes | None:
        place = {"regionIdentifier": "eu-frankfurt-1", "regionKey": "FRA", "realmDomainComponent": "oraclecloud.com"}
        certificate = (self.folder / "instance.pem").read_bytes()
        known = {
            "identity/cert.pem": certificate,
            "identity/key.pem": (self.folder / "instance.key").read_bytes(),
            "identity/intermediate.pem": certificate,
            "instance/id": instance(node).encode(),
            "instance/region": b"fra",
            "instance/regionInfo": json.dumps({**place, "realmKey": "oc1"}).encode(),
        }
        return known.get(path)

    def signed_by_us(self, headers: dict[str, str], method: str, target: str, body: bytes) -> str | None:
        """None if the request is signed as it must be, else what is wrong."""
        parts = dict(re.findall(r'(\w+)="([^"]*)"', headers.get("authorization", "")))
        names = parts.get("headers", "").split()
        exchange = target == "/v1/x509"
        wanted = {"date", "(request-target)"} | (set() if exchange else {"host"})
        wanted |= {"content-length", "content-type", "x-content-sha256"} if method == "POST" else set()
        if not wanted <= set(names):
            return f"signs {names} only"
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if method == "POST" and headers["x-content-sha256"] != digest:
            return "x-content-sha256 is not the body's"
        if method == "PUT" and headers.get("opc-content-sha256") != digest:
            return "opc-content-sha256 is not the body's"
        if exchange:
            key = self.folder / "leaf.pub"
            key.write_bytes(openssl("x509", "-pubkey", "-noout", "-in", str(self.folder / "instance.pem")))
            mark = openssl("x509", "-noout", "-fingerprint", "-sha1", "-in", str(self.folder / "instance.pem"))
            expected = f"{TENANCY}/fed-x509/{mark.decode().strip().partition('=')[2]}"
        else:
            expected = parts.get("keyId", "")
            known = self.sessions.get(expected.removeprefix("ST$"))
            if known is None:
                return f"keyId {expected}"
            key = known
        if parts.get("keyId") != expected:
            return f"keyId {parts.get('keyId')}"
        values = {**headers, "(request-target)": f"{method.lower()} {target}"}
        signature = self.folder / "signature"
        signature.write_bytes(base64.b64decode(parts["signature"]))
        text = "\n".join(f"{name}: {values[name]}" for name in names).encode()
        check = ["openssl", "dgst", "-sha256", "-verify", str(key), "-signature", str(signature)]
        held = subprocess.run(check, input=text, capture_output=True, check=False).returncode == 0
        return None if held else "signature"

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        if target == "/v1/x509":
            asked = json.loads(body)
            pem = asked["publicKey"]
            text = "\n".join(pem[start : start + 64] for start in range(0, len(pem), 64))
            self.tokens += 1
            key = self.folder / f"session-{self.tokens}.pub"
            key.write_text(f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
            self.sessions[_token(self.tokens)] = key
            return 200, json.dumps({"token": _token(self.tokens)}).encode()
        if target == "/20180419/docker/token":
            return 200, b'{"token": "registry-token"}'
        if method == "DELETE" and (found := re.match(rf"/20160918/instances/({re.escape(INSTANCE)}\d*)\?", target)):
            assert "preserveBootVolume=false" in target
            assert "preserveDataVolumesCreatedAtLaunch=false" in target
            self.ended.append(found[1])
            return 204, b""
        if target == f"/20181201/topics/{TOPIC}/messages":
            self.messages.append(json.loads(body))
            return 202, b"{}"
        if target == f"/20200831/logs/{LOG}/actions/push":
            self.lines += [entry["data"] for batch in json.loads(body)["logEntryBatches"] for entry in batch["entries"]]
            return 200, b""
        if stored := re.fullmatch(r"/n/example/b/gpu-job/o/([^/?]+)", target):
            return self._object(method, unquote(stored[1]), body)
        return 404, b'{"code": "NotAuthorizedOrNotFound"}'

    def _object(self, method: str, name: str, body: bytes) -> tuple[int, bytes]:
        if method == "PUT":
            self.objects[name] = body
        return (200, b"" if method != "GET" else self.objects[name]) if name in self.objects else (404, b"")


def instance(node: int) -> str:
    """Its OCID."""
    return f"{INSTANCE}{node or ''}"


def _token(number: int) -> str:
    """In the form of a JSON web token that is valid for long, as the SDK wants to read it."""
    claims = base64.urlsafe_b64encode(json.dumps({"exp": 4102444800, "n": number}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2ln"


class _Handler(BaseHTTPRequestHandler):
    oracle: Oracle

    def _serve(self) -> None:
        oracle, method = self.oracle, self.command
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        if asked := re.fullmatch(r"/node-(\d+)/opc/v2/(.+)", self.path):
            found = oracle.metadata(int(asked[1]), asked[2])
            allowed = headers.get("authorization") == "Bearer Oracle"
            self._reply(*((200, found) if found is not None and allowed else (404, b"")))
            return
        oracle.requests.append(f"{method} {self.path}")
        failing = [status for start, status in oracle.fail.items() if self.path.startswith(start)]
        if failing:
            self._reply(failing[0], b'{"code": "Asked", "message": "to fail"}')
        elif wrong := self._wrong(headers, body):
            oracle.refused.append(f"{method} {self.path}: {wrong}")
            self._reply(401, b'{"code": "NotAuthenticated"}')
        else:
            self._reply(*oracle.answer(method, self.path, body))

    def _wrong(self, headers: dict[str, str], body: bytes) -> str | None:
        with self.oracle.one_by_one:  # openssl reads files of one name
            return self.oracle.signed_by_us(headers, self.command, self.path, body)

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("opc-request-id", "request-of-a-test")
        if status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing to the terminal."""
