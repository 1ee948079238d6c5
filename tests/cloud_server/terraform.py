"""A stand-in for the terraform binary that launches at the loopback, with requests signed like the real provider's.

It knows init, apply and destroy as submit calls them: state and variables from files, one error as a diagnostic of
`-json`, a state with the instances' ids. What infra/run would make of the variables is told to it by nobody: the real
binary has tests of its own. python terraform.py -chdir=… VERB -state=… -var-file=…
"""

import base64
import hashlib
import http.client
import json
import os
import re
import sys
import uuid
from email.utils import formatdate
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

COMPUTE = "/20160918/instances/"


class Refused(Exception):
    """The service's answer, as the provider words it."""


def main(words: list[str]) -> int:
    options = dict(re.findall(r"^-([a-z-]+)=(.*)$", "\n".join(words), flags=re.MULTILINE))
    verb = next(word for word in words if not word.startswith("-"))
    if verb == "init":
        return 0 if (Path(options["chdir"]) / "instance.tf").is_file() else 1
    state, variables = Path(options["state"]), json.loads(Path(options["var-file"]).read_text())
    known = json.loads(state.read_text())["outputs"]["instance_ids"]["value"] if state.exists() else []
    try:
        if verb == "destroy":
            for identifier in known:
                call("DELETE", f"{COMPUTE}{identifier}?preserveBootVolume=false")
            write(state, [])
            return 0
        for node in range(len(known), variables["nodes"]):
            known.append(call("POST", COMPUTE, details(variables, node))["id"])
            write(state, known)
    except (Refused, OSError) as error:
        told = {"severity": "error", "summary": str(error), "detail": "with oci_core_instance.node[0]"}
        sys.stdout.write(json.dumps({"@level": "error", "type": "diagnostic", "diagnostic": told}) + "\n")
        return 1
    return 0


def write(state: Path, identifiers: list[str]) -> None:
    state.write_text(json.dumps({"version": 4, "outputs": {"instance_ids": {"value": identifiers}}}))


def details(variables: dict[str, Any], node: int) -> dict[str, Any]:
    tags = {"role": "run", "run_id": variables["run_id"], "owner": variables["owner"]}
    tags["expires"] = expires(variables)
    return {
        "compartmentId": variables["compartment_ocid"],
        "availabilityDomain": variables["availability_domain"],
        "faultDomain": variables["fault_domain"],
        "shape": variables["shape"],
        "displayName": f"{variables['run_id']}-{node}",
        "definedTags": {variables["tag_namespace"]: tags},
    }


def expires(variables: dict[str, Any]) -> str:
    from datetime import datetime, timedelta

    end = datetime.fromisoformat(variables["launched"]) + timedelta(seconds=variables["max_duration"])
    return end.isoformat().replace("+00:00", "Z")


def call(method: str, target: str, value: Any = None) -> Any:
    """One signed request; the token of a launch is made anew each time, as the provider's is."""
    config = dict(re.findall(r"^(\w+)=(.*)$", Path(os.environ["OCI_CONFIG_FILE"]).read_text(), flags=re.MULTILINE))
    key = serialization.load_pem_private_key(Path(config["key_file"]).read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    host = os.environ["JOB_OCI_ENDPOINT"].removeprefix("http://")
    body = b"" if value is None else json.dumps(value).encode()
    headers = {"date": formatdate(usegmt=True), "host": host}
    names = ["date", "(request-target)", "host"]
    if method == "POST":
        headers |= {"content-length": str(len(body)), "content-type": "application/json"}
        headers["x-content-sha256"] = base64.b64encode(hashlib.sha256(body).digest()).decode()
        headers["opc-retry-token"] = uuid.uuid4().hex
        names += ["content-length", "content-type", "x-content-sha256"]
    values = {**headers, "(request-target)": f"{method.lower()} {target}"}
    text = "\n".join(f"{name}: {values[name]}" for name in names)
    signature = base64.b64encode(key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())).decode()
    key_id = f"{config['tenancy']}/{config['user']}/{config['fingerprint']}"
    fields = {"version": "1", "algorithm": "rsa-sha256", "headers": " ".join(names), "keyId": key_id}
    quoted = ",".join(f'{name}="{word}"' for name, word in {**fields, "signature": signature}.items())
    connection = http.client.HTTPConnection(host, timeout=30)
    connection.request(method, target, body or None, {**headers, "authorization": f"Signature {quoted}"})
    answer = connection.getresponse()
    told = json.loads(answer.read() or b"null")
    if answer.status >= 300:
        raise Refused(f"{answer.status}-{told['code']}, {told['message']}")
    return told


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
