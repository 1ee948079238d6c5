"""Call OCI as this instance, with Python's standard library (3.6 and later) and openssl: nothing has to be installed.

The watchdog ends the machine through this file, so it may need neither the job, its image, a package nor a yum.

    oci.py terminate | token HOST | get OBJECT FILE | put FILE OBJECT | exists OBJECT | logs FILE | publish TITLE FILE
"""

import base64
import email.utils
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Tuple

METADATA = os.environ.get("OCI_METADATA_BASE_URL", "http://169.254.169.254/opc/v2")
STATE = Path(os.environ.get("GPU_JOB_STATE", "/run/gpu-job"))
UNAUTHORIZED = 401
SESSION_SECONDS = 600  # a token lives longer than this
LOG_BYTES = 500_000  # of a file in one PutLogs request, which takes 1 MB


def main(verb: str, *words: str) -> None:
    """Do one thing; any failure is an exception and so a non-zero exit."""
    os.umask(0o077)
    if verb == "terminate":
        gone = "preserveBootVolume=false&preserveDataVolumesCreatedAtLaunch=false"
        call("DELETE", "iaas", f"/20160918/instances/{metadata('instance/id').decode()}?{gone}")
    elif verb == "token":
        answer = call("GET", "https://" + words[0], "/20180419/docker/token")
        sys.stdout.write(json.loads(answer.decode())["token"])
    elif verb == "get":
        Path(words[1]).write_bytes(call("GET", "objectstorage", stored(words[0])))
    elif verb == "put":
        call("PUT", "objectstorage", stored(words[1]), Path(words[0]).read_bytes())
    elif verb == "exists":
        call("HEAD", "objectstorage", stored(words[0]))
    elif verb == "logs":
        logs(Path(words[0]))
    elif verb == "publish":
        text = Path(words[1]).read_bytes()[-60000:].decode("utf-8", "replace")
        body = json.dumps({"title": words[0], "body": text}).encode()
        call("POST", "notification", f"/20181201/topics/{os.environ['TOPIC_ID']}/messages", body)
    else:
        raise SystemExit(__doc__)


def stored(name: str) -> str:
    return f"/n/{os.environ['NAMESPACE']}/b/{os.environ['BUCKET']}/o/" + urllib.parse.quote(name, safe="")


def logs(path: Path) -> None:
    """Send what the file has grown by since the last call to OCI Logging, whole lines only."""
    mark = STATE / (path.name + ".sent")
    sent = int(mark.read_text()) if mark.exists() else 0
    with path.open("rb") as file:
        file.seek(sent)
        fresh = file.read(LOG_BYTES)
    whole = fresh.rfind(b"\n") + 1 or (len(fresh) if len(fresh) == LOG_BYTES else 0)
    lines = [line for line in fresh[:whole].decode("utf-8", "replace").splitlines() if line.strip()]
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if lines:
        entries = [{"id": str(uuid.uuid4()), "time": now, "data": line[:9000]} for line in lines]
        batch = {"entries": entries, "source": os.environ["RUN_ID"], "type": "gpu-job." + path.name}
        batch.update(subject="node-" + os.environ["NODE_RANK"], defaultlogentrytime=now)
        body = json.dumps({"specversion": "1.0", "logEntryBatches": [batch]}).encode()
        call("POST", "ingestion.logging", f"/20200831/logs/{os.environ['LOG_ID']}/actions/push", body)
    mark.write_text(str(sent + whole))


def metadata(path: str) -> bytes:
    return fetch(urllib.request.Request(f"{METADATA}/{path}", headers={"Authorization": "Bearer Oracle"}), 10)


def call(method: str, service: str, path: str, body: bytes = b"") -> bytes:
    """One signed request as this instance; a session that is refused is made anew once."""
    for fresh in (False, True):
        key_id, key = session(fresh)
        try:
            return send(method, endpoint(service) + path, body, key_id, key)
        except urllib.error.HTTPError as error:
            if error.code != UNAUTHORIZED or fresh:
                told = error.read()[:500].decode("utf-8", "replace")
                raise SystemExit(
                    f"{method} {path}: {error.code} {told} {error.headers.get('opc-request-id')}"
                ) from error
    raise AssertionError


def endpoint(service: str) -> str:
    if "GPU_JOB_ENDPOINT" in os.environ:
        return os.environ["GPU_JOB_ENDPOINT"]
    if service.startswith("https://"):
        return service
    place = json.loads(metadata("instance/regionInfo").decode())
    dotted = "oci." if service == "ingestion.logging" else ""
    return f"https://{service}.{place['regionIdentifier']}.{dotted}{place['realmDomainComponent']}"


def session(fresh: bool) -> Tuple[str, Path]:
    """Key id and key file of a session: the instance's certificate is exchanged for a token on a key made here."""
    token, key, leaf, leaf_key = (STATE / name for name in ("token", "session.pem", "leaf.pem", "leaf.key"))
    if fresh or not token.exists() or time.time() - token.stat().st_mtime > SESSION_SECONDS:
        leaf.write_bytes(metadata("identity/cert.pem"))
        leaf_key.write_bytes(metadata("identity/key.pem"))
        openssl("genrsa", "-out", str(key), "2048")
        subject = openssl("x509", "-noout", "-subject", "-nameopt", "RFC2253", "-in", str(leaf)).decode()
        tenancy = re.search(r"opc-(?:tenant|identity):([^,+\s]+)", subject)
        if tenancy is None:
            raise SystemExit(f"the instance's certificate names no tenancy: {subject}")
        mark = openssl("x509", "-noout", "-fingerprint", "-sha1", "-in", str(leaf)).decode().strip().partition("=")[2]
        asked = {
            "certificate": bare(leaf.read_bytes()),
            "publicKey": bare(openssl("rsa", "-pubout", "-in", str(key))),
            "intermediateCertificates": [bare(metadata("identity/intermediate.pem"))],
        }
        named = f"{tenancy.group(1)}/fed-x509/{mark}"
        answer = send("POST", endpoint("auth") + "/v1/x509", json.dumps(asked).encode(), named, leaf_key)
        token.write_text(json.loads(answer.decode())["token"])
    return "ST$" + token.read_text(), key


def send(method: str, url: str, body: bytes, key_id: str, key: Path) -> bytes:
    """Sign as OCI asks: always date, target and host; the body too, but for that of an object."""
    parts = urllib.parse.urlsplit(url)
    target = parts.path + ("?" + parts.query if parts.query else "")
    headers = {"date": email.utils.formatdate(usegmt=True), "host": parts.netloc}
    names = ["date", "(request-target)", "host"]
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    if method == "POST":
        headers.update({"content-length": str(len(body)), "content-type": "application/json"})
        headers["x-content-sha256"] = digest
        names += ["content-length", "content-type", "x-content-sha256"]
    elif method == "PUT":
        headers.update({"content-length": str(len(body)), "content-type": "application/octet-stream"})
        headers["opc-content-sha256"] = digest  # the service compares it with what arrived
    values = dict(headers, **{"(request-target)": f"{method.lower()} {target}"})
    text = "\n".join(f"{name}: {values[name]}" for name in names)
    signature = base64.b64encode(openssl("dgst", "-sha256", "-sign", str(key), stdin=text.encode())).decode()
    signed = f'headers="{" ".join(names)}",keyId="{key_id}",signature="{signature}"'
    headers["authorization"] = f'Signature version="1",algorithm="rsa-sha256",{signed}'
    data = body if method in ("POST", "PUT") else None
    return fetch(urllib.request.Request(url, data=data, headers=headers, method=method), 60)


def fetch(request: urllib.request.Request, seconds: int) -> bytes:
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        content: bytes = answer.read()
        return content


def openssl(*words: str, stdin: bytes = b"") -> bytes:
    return subprocess.check_output(["openssl", *words], input=stdin, stderr=subprocess.DEVNULL)


def bare(pem: bytes) -> str:
    """Only the base64 of a PEM text."""
    return "".join(line for line in pem.decode("ascii").split("\n") if not line.startswith("-----"))


if __name__ == "__main__":
    main(*sys.argv[1:])
