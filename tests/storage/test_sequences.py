"""Any sequence of calls under any faults: nothing that was stored is lost, and no byte is ever another."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from job.storage.object_storage import ObjectStore
from job.storage.store import StoreError
from tests.object_storage.faults import FINAL, OTHERS, REFUSALS
from tests.object_storage.server import ObjectStorage
from tests.storage.files import back, written

KINDS = (*REFUSALS, *OTHERS)
NAMES = ("a", "ü d/c")
CALLS = ("put", "create", "replace", "stale", "get", "delete", "list", "head")
STEPS = st.lists(
    st.tuples(st.sampled_from(CALLS), st.sampled_from(NAMES), st.integers(0, 5000)), min_size=8, max_size=16
)
MORE = st.lists(st.sampled_from(KINDS), max_size=2)
ABSENT = None
REQUEST = re.compile(r"opc-(client-)?request-id [\w-]{8,}")  # what the service's support asks for


class Expected:
    """What each name may hold by what the calls so far have told: contents, ABSENT, or one of several."""

    def __init__(self, store: ObjectStore, folder: Path, kinds: list[str]) -> None:
        self.store, self.folder, self.kinds = store, folder, kinds
        self.errors: list[str] = []
        self.possible: dict[str, set[bytes | None]] = {name: {ABSENT} for name in NAMES}

    def step(self, call: str, name: str, content: bytes) -> None:
        before = self.possible[name]
        source = written(self.folder / "file", content)
        try:
            getattr(self, call)(name, source, content)
        except StoreError as error:
            self.errors.append(str(error))
            if error.final and not self.may_refuse() and not (call == "get" and ABSENT in before):
                raise
            if call in ("put", "replace") or (call == "create" and ABSENT in before):
                self.possible[name] = before | {content}
            elif call == "delete":
                self.possible[name] = before | {ABSENT}

    def put(self, name: str, source: Path, content: bytes) -> None:
        entry = self.store.put(source, name)
        self.possible[name] = {content}
        assert entry.size == len(content)

    def create(self, name: str, source: Path, content: bytes) -> None:
        if self.store.put_if(source, name, None) is not None:
            assert ABSENT in self.possible[name], "it has overwritten"
            self.possible[name] = {content}
        elif "412" not in self.kinds:
            assert self.possible[name] != {ABSENT}
            self.possible[name] = self.possible[name] - {ABSENT}

    def replace(self, name: str, source: Path, content: bytes) -> None:
        there = self.store.head(name)
        if there is not None:
            made = self.store.put_if(source, name, there.etag)
            assert made is not None or "412" in self.kinds
            self.possible[name] = self.possible[name] if made is None else {content}

    def stale(self, name: str, source: Path, _content: bytes) -> None:
        assert self.store.put_if(source, name, "an-etag-of-old") is None, "it has overwritten"

    def get(self, name: str, _source: Path, _content: bytes) -> None:
        assert back(self.store, name, self.folder / "reader") in self.possible[name]

    def delete(self, name: str, _source: Path, _content: bytes) -> None:
        self.store.delete(name)
        self.possible[name] = {ABSENT}

    def list(self, _name: str, _source: Path, _content: bytes) -> None:
        sizes = {entry.name: entry.size for entry in self.store.list()}
        for name, contents in self.possible.items():
            assert name in sizes or ABSENT in contents, "it is lost"
            assert name not in sizes or contents != {ABSENT}
            if len(contents) == 1 and name in sizes:
                assert [sizes[name]] == [len(content or b"") for content in contents]

    def head(self, name: str, _source: Path, _content: bytes) -> None:
        contents, there = self.possible[name], self.store.exists(name)
        assert contents != {ABSENT} if there else ABSENT in contents

    def may_refuse(self) -> bool:
        return bool(set(FINAL) & set(self.kinds))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FINAL])
@settings(
    max_examples=6,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS, seed=st.integers(0, 2**16), more=MORE)
def test_nothing_is_lost_and_no_byte_is_wrong(
    store: ObjectStore,
    server: ObjectStorage,
    tmp_path: Path,
    steps: list[tuple[str, str, int]],
    seed: int,
    kind: str,
    more: list[str],
) -> None:
    for entry in store.list():
        store.delete(entry.name)
    (tmp_path / "reader").mkdir(exist_ok=True)
    server.faults.reseed(seed)
    server.faults.add(kind, times=None, probability=0.1 if kind == "hang" else 0.25)
    for other in more:
        server.faults.add(other, times=None, probability=0.1)
    expected = Expected(store, tmp_path, [kind, *more])
    for number, (call, name, size) in enumerate(steps):
        expected.step(call, name, number.to_bytes(2, "big") * (size // 2))
    server.faults.clear()
    expected.list("", tmp_path, b"")
    for name, contents in expected.possible.items():
        try:
            found = back(store, name, tmp_path / "reader")
        except StoreError as error:  # for what is not there, or damaged: by a put that failed, or on the service's disk
            expected.errors.append(str(error))
            assert ABSENT in contents or len(contents) > 1 or "flipped" in expected.kinds
            assert ABSENT in contents or server.content(f"runs/{name}") not in contents, "it was there, and sound"
        else:
            assert found in contents
    assert [error for error in expected.errors if not REQUEST.search(error)] == []
