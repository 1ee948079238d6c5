"""Zip each Terraform module for OCI's Resource Manager: python infra/stacks.py FOLDER.

A stack is the module's own files at the root, without tests, state or variables; that of a run also has the table of
shapes, which in a checkout lies in job/cloud.
"""

import sys
import zipfile
from pathlib import Path

INFRA = Path(__file__).resolve().parent
KINDS = {".tf", ".tftpl", ".sh", ".py"}


def main(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name, extra in (("foundation", []), ("run", [INFRA.parent / "job/cloud/shapes.yaml"])):
        module = INFRA / name
        files = [path for path in sorted(module.rglob("*")) if path.suffix in KINDS and ".terraform" not in path.parts]
        with zipfile.ZipFile(target / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as stack:
            for path in [*files, module / "schema.yaml"]:
                stack.write(path, path.relative_to(module))
            for path in extra:
                stack.write(path, path.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
