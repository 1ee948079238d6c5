"""Why a launch failed, from what the service said: no capacity is told apart from limits, rights and unknown shapes.

OCI says "Out of host capacity" with status 500, a missing right with 404, and a shape that an availability domain does
not have with 404 or 400, so neither the status nor the code alone tells. Each cause carries its cure, and how far it
reaches: to one cell of shape × availability domain × fault domain, to the shape in that domain, or to every try.
"""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["capacity", "limit", "quota", "authorisation", "shape", "throttled", "refused", "unreachable", "other"]
Reach = Literal["cell", "shape", "all"]

# The first that fits, in this order: kind, what to look for in "STATUS-Code, Message".
SIGNS: tuple[tuple[Kind, str], ...] = (
    ("capacity", r"out of (host )?capacity|insufficient (host )?capacity|outofhostcapacity|outofcapacity"),
    ("limit", r"limitexceeded|service limits? (was|were|has been|would be) exceeded|service limit"),
    ("quota", r"quotaexceeded|\bquota\b.*exceeded|exceeds? .*\bquota\b"),
    ("shape", r"shape\b.{0,60}\b(not found|not available|not supported|does not exist|invalid|incompatible)"),
    ("shape", r"(invalid|unknown|unsupported|incompatible).{0,60}\bshape\b"),
    ("authorisation", r"\b401-|\b403-|notauthori[sz]ed|notauthenticated|authorization failed|not authori[sz]ed"),
    ("throttled", r"\b429-|toomanyrequests"),
    ("refused", r"invalid value for variable|precondition failed|check block assertion|reference to undeclared"),
    (
        "unreachable",
        r"dial tcp|connection (refused|reset)|no such host|i/o timeout|timed? ?out|unexpected eof|\b50[234]-",
    ),
)
CURES: dict[Kind, str] = {
    "capacity": "try later, add other shapes in resources.fallback, or let it wait with resources.max_wait",
    "limit": "ask for a higher service limit in the console: Governance, Limits, Quotas and Usage",
    "quota": "a compartment quota of your tenancy forbids it: whoever administers it can raise it",
    "authorisation": "the signed-in user lacks a right, or the foundation was made minutes ago and is not known "
    "everywhere yet; infra/README.md lists what a launcher needs",
    "shape": "this availability domain does not offer the shape to your tenancy; python -m job plan SPEC --live lists",
    "throttled": "the service asks to go slower; it is tried again",
    "refused": "change what it names and submit again",
    "unreachable": "check the network and the region, then submit the same run id again",
    "other": "the log of the try has all that was said",
}
REACHES: dict[Kind, Reach] = {"limit": "shape", "quota": "shape", "shape": "shape", "authorisation": "all"}
REACHES |= {"refused": "all", "unreachable": "all"}


@dataclass(frozen=True)
class Cause:
    kind: Kind
    said: str  # the service's own words, in a line

    @property
    def cure(self) -> str:
        return CURES[self.kind]

    @property
    def reach(self) -> Reach:
        """What it makes pointless to try as well."""
        return REACHES.get(self.kind, "cell")


def classify(said: str) -> Cause:
    """`said` is what Terraform or the SDK reported: best "STATUS-Code, Message"."""
    line = " ".join(said.split())
    lowered = line.lower()
    found: list[Kind] = [kind for kind, sign in SIGNS if re.search(sign, lowered)]
    return Cause(found[0] if found else "other", line[:300] or "nothing was said")


def of_service_error(status: int, code: str | None, message: str | None) -> Cause:
    """The same for an answer that the SDK turned into an exception."""
    return classify(f"{status}-{code or 'NoCode'}, {message or ''}")
