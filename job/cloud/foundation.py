"""What infra/foundation made in a tenancy: its outputs, which every verb on OCI starts from.

    terraform -chdir=infra/foundation output -json > foundation.json

$JOB_FOUNDATION names the file; without it, foundation.json in the working folder.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.errors import UsageError

VARIABLE, DEFAULT = "JOB_FOUNDATION", "foundation.json"
NEEDED = ("tenancy_ocid", "compartment_ocid", "region", "namespace", "bucket", "prefix", "store_uri", "tag_namespace")
MAKE_IT = "make it with: terraform -chdir=infra/foundation output -json > foundation.json"


@dataclass(frozen=True)
class Foundation:
    """`values` holds every output under its name; infra/run takes them under the same names."""

    values: Mapping[str, Any]

    @property
    def tenancy(self) -> str:
        return str(self.values["tenancy_ocid"])

    @property
    def compartment(self) -> str:
        return str(self.values["compartment_ocid"])

    @property
    def region(self) -> str:
        return str(self.values["region"])

    @property
    def tag_namespace(self) -> str:
        return str(self.values["tag_namespace"])

    @property
    def cluster_domain(self) -> str | None:
        """Availability domain of the compute cluster for RDMA; None where there is none."""
        domain = self.values.get("rdma_availability_domain")
        return str(domain) if domain and self.values.get("compute_cluster_id") else None

    @property
    def store_uri(self) -> str:
        """Where runs put their results: store.uri of every spec that is submitted."""
        return str(self.values["store_uri"])

    @property
    def launches_uri(self) -> str:
        """Where submit keeps its records and instances tell of themselves."""
        return f"oci://{self.values['bucket']}@{self.values['namespace']}/launches"


def read() -> Foundation:
    """The file that $JOB_FOUNDATION names. UsageError with the command that makes it."""
    path = Path(os.environ.get(VARIABLE) or DEFAULT)
    try:
        outputs = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(str(path), "the foundation's outputs are not there", MAKE_IT) from None
    except (OSError, ValueError) as error:
        raise UsageError(str(path), f"not the foundation's outputs: {error}", MAKE_IT) from error
    if not isinstance(outputs, dict) or not outputs:
        raise UsageError(str(path), "not the foundation's outputs", MAKE_IT)
    values = {name: _value(output) for name, output in outputs.items()}
    if missing := [name for name in NEEDED if not values.get(name)]:
        raise UsageError(str(path), f"{', '.join(missing)} missing", "apply infra/foundation, then " + MAKE_IT)
    return Foundation(values)


def _value(output: Any) -> Any:
    """`terraform output -json` wraps each value together with its type."""
    return output["value"] if isinstance(output, dict) and "value" in output else output
