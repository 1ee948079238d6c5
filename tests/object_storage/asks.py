"""Which operation a request line asks for."""

import urllib.parse
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ask:
    """A request, taken apart."""

    operation: str
    namespace: str = ""
    bucket: str = ""
    name: str = ""
    query: dict[str, str] = field(default_factory=dict)


def parse(method: str, target: str) -> Ask:
    """Which operation a request line asks for."""
    path, _, query_text = target.partition("?")
    query = dict(urllib.parse.parse_qsl(query_text, keep_blank_values=True))
    pieces = path.lstrip("/").split("/", 5)
    if pieces[0] != "n":
        known = {"control": "control", "v1/x509": "exchange", "v1/authentication/refresh": "refresh"}
        if path.startswith("/opc/v2/"):
            return Ask("metadata", name=path.removeprefix("/opc/v2/"), query=query)
        return Ask(known.get(path.strip("/"), "unknown"), query=query)
    namespace, _, bucket, kind, name = (*(urllib.parse.unquote(piece) for piece in pieces[1:]), *[""] * 5)[:5]
    operation = {
        ("GET", "", ""): "namespace",
        ("GET", "b", ""): "bucket",
        ("HEAD", "b", ""): "bucket",
        ("GET", "b", "o"): "get" if name else "list",
        ("HEAD", "b", "o"): "head",
        ("PUT", "b", "o"): "put",
        ("DELETE", "b", "o"): "delete",
        ("GET", "b", "u"): "list_parts" if name else "list_uploads",
        ("POST", "b", "u"): "commit_upload" if name else "create_upload",
        ("PUT", "b", "u"): "upload_part",
        ("DELETE", "b", "u"): "abort_upload",
    }.get((method, _, kind), "unknown")
    return Ask(operation, namespace, bucket, name, query)
