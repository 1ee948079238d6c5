"""The server as a process: python -m tests.object_storage FOLDER [--bucket NAMESPACE/BUCKET]… [--port N] …

Prints one line of JSON: the endpoint, a config file for the SDK and the CLI, a bucket's URI and the environment to set.
What is stored lies in FOLDER and is found again by the next process.
"""

import argparse
import json
import shutil
import signal
from pathlib import Path

from tests.object_storage.identity import write_config
from tests.object_storage.server import MIN_PART, ObjectStorage


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.object_storage", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bucket", action="append", default=[], help="NAMESPACE/BUCKET, default space/bucket")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0, help="milliseconds added to each request")
    parser.add_argument("--rate", type=float, help="MB a second that one connection carries")
    parser.add_argument("--page-size", type=int, default=1000, help="entries of a page at most")
    parser.add_argument("--min-part", type=int, default=MIN_PART, help="bytes of each part but the last at least")
    asked = parser.parse_args()
    folder, buckets = asked.folder.absolute(), tuple(asked.bucket) or ("space/bucket",)
    sizes = {"page_size": asked.page_size, "min_part": asked.min_part}
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before threads begin: they inherit it
    with ObjectStorage(folder, buckets, asked.port, **sizes) as server:
        shutil.rmtree(folder / "oci", ignore_errors=True)
        config = write_config(folder / "oci", server.identity)
        server.faults.latency = asked.latency / 1000
        server.faults.rate = asked.rate * 1e6 if asked.rate else None
        namespace, _, bucket = buckets[0].partition("/")
        environment = {"JOB_OCI_ENDPOINT": server.endpoint, "OCI_CONFIG_FILE": str(config), "OCI_CLI_AUTH": "api_key"}
        metadata = {"OCI_METADATA_BASE_URL": f"{server.endpoint}/opc/v2"}
        told = {"endpoint": server.endpoint, "config": str(config), "uri": f"oci://{bucket}@{namespace}"}
        print(json.dumps({**told, "environment": environment, "metadata": metadata}), flush=True)
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
