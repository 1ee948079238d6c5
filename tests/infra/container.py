"""Stands for a container: runs the job with what the engine was told, and with nothing else of the machine around it.

    container.py ROOT HOST:PORT ENGINE'S WORDS…

Paths inside are replaced by what is mounted there, and the first node's name by the address that this test gives it.
"""

import json
import os
import re
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def main(root: Path, place: str, words: list[str]) -> None:
    told = dict(re.findall(r"^--([a-z-]+)=(.*)$", "\n".join(words), re.MULTILINE))
    given = Path(told["env-file"]).read_text().splitlines()
    given += [word.removeprefix("--env=") for word in words if word.startswith("--env=")]
    environment = dict(line.split("=", 1) for line in given)
    (root / "container.json").write_text(json.dumps(environment))
    mounts = [word.removeprefix("--volume=").split(":")[:2] for word in words if word.startswith("--volume=")]
    inside = {to: source for source, to in mounts}

    def outside(text: str) -> str:
        for to, source in inside.items():
            if text == to or text.startswith(f"{to}/"):
                return source + text.removeprefix(to)
        return text

    environment = {name: outside(value) for name, value in environment.items()}
    environment |= {"JOB_RENDEZVOUS": place, "PATH": os.defpath, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    image = next(at for at, word in enumerate(words) if "@sha256:" in word)
    arguments = [outside(word) for word in words[image + 1 :]]
    os.chdir(outside(told["workdir"]))
    os.execve(sys.executable, [sys.executable, "-m", "job", *arguments], environment)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
