"""Brings a data set to where it belongs: from a mirror's archive or by torchvision's download, whole or not at all.

Everything is unpacked beside its place, under a name that starts with a dot, and renamed at the end: a half-written
folder is never taken for a data set.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from job.data import image_folder
from job.data.official import OFFICIAL, holds
from job.errors import DataError
from job.runfolder import disk_errors
from job.spec.schema import Dataset
from job.storage.store import LOCK, Store, StoreError, open_store, unfinished

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
MOST_FILES = 5_000_000
MOST_BYTES = 2 * 2**40
OFFLINE = "put the files in dataset.root, name a dataset.mirror, or give this machine a network"


def download(name: str, root: Path) -> None:
    """torchvision's own download into a folder of its own, then one rename."""
    official = OFFICIAL[name]
    with _beside(root, name) as temporary:
        if holds(name, root):  # another process was faster
            return
        _refuse_other(root / official.folder)
        _clear(temporary)
        try:
            from torchvision import datasets

            getattr(datasets, official.torchvision)(str(temporary), train=True, download=True)
        except Exception as error:  # torchvision and urllib raise many kinds
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(name, f"the download failed ({reason})", OFFLINE) from error
        _put_in_place(temporary / official.folder, root / official.folder)


def unpack_mirror(spec: Dataset, root: Path) -> None:
    """Fetches the mirror's archive, checks its sum, unpacks it safely and puts the data set into `root`.

    What has arrived when the process is killed, or the store stops answering, is there for the next start.
    """
    place, name = archive_of(spec)
    official = OFFICIAL.get(spec.name)
    try:
        with _beside(root if official else root.absolute().parent, f"{place}/{name} {root.name}") as temporary:
            if holds(spec.name, root) if official else image_folder.holds(root):  # another process was faster
                return
            target = root / official.folder if official else root
            _refuse_other(target)
            archive = _archive(spec, place, name, temporary)
            unpacked = temporary / "unpacked"
            unpacked.mkdir()
            unpack(archive, unpacked, f"{place}/{name}")
            if official:
                if not (unpacked / official.folder).is_dir():
                    what = f"it holds no folder {official.folder}"
                    raise DataError(f"{place}/{name}", what, "take the official archive")
                _put_in_place(unpacked / official.folder, target)
                return
            content = unpacked
            while len(inside := list(content.iterdir())) == 1 and inside[0].is_dir():  # a folder around everything
                content = inside[0]
            _put_in_place(content, target)
    except StoreError as error:
        raise DataError(error.where, error.what, error.cure) from error


def archive_of(spec: Dataset) -> tuple[str, str]:
    """The store that holds the archive, and the archive's name in it."""
    mirror = (spec.mirror or "").rstrip("/")
    if mirror.lower().endswith(ARCHIVES):
        place, _, name = mirror.rpartition("/")
        return place or ".", name
    official = OFFICIAL.get(spec.name)
    if official is None or official.archive is None:
        cure = f"name the archive itself: {', '.join(ARCHIVES)}"
        raise DataError("dataset.mirror", f"{mirror} is a folder, and which archive in it is not known", cure)
    return mirror, official.archive


def unpack(archive: Path, folder: Path, shown: str) -> None:
    """Unpacks into `folder`. Refuses names that lead out of it, links, devices, and more than the limits."""
    try:
        if archive.name.lower().endswith(".zip"):
            _unpack_zip(archive, folder, shown)
        else:
            _unpack_tar(archive, folder, shown)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, tarfile.TarError):
            with disk_errors(folder, "dataset.root"):
                raise
        raise DataError(shown, f"it is no whole archive ({error})", "make it again") from error


def _unpack_tar(archive: Path, folder: Path, shown: str) -> None:
    with tarfile.open(archive) as tar:
        total = count = 0
        for member in tar:
            total, count = total + member.size, count + 1
            kind = member.isfile() or member.isdir()
            _refuse(member.name, kind, total, count, shown)
            tar.extract(member, folder, filter="data")


def _unpack_zip(archive: Path, folder: Path, shown: str) -> None:
    with zipfile.ZipFile(archive) as packed:
        total = 0
        for count, member in enumerate(packed.infolist(), 1):
            total += member.file_size
            link = (member.external_attr >> 16) & 0o170000 == 0o120000  # noqa: PLR2004 - a symbolic link's file type
            _refuse(member.filename, not link, total, count, shown)
            packed.extract(member, folder)


def _refuse(name: str, plain: bool, total: int, count: int, shown: str) -> None:
    path = PurePosixPath(name)
    problem = None
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        problem = f"its member {name!r} would leave the folder"
    elif not plain:
        problem = f"its member {name!r} is a link or a device"
    elif total > MOST_BYTES or count > MOST_FILES:
        problem = f"it unpacks to more than {MOST_BYTES / 2**40:.0f} TiB or {MOST_FILES:,} files"
    if problem is not None:
        raise DataError(shown, problem, "take an archive of plain files and folders")


def _archive(spec: Dataset, place: str, name: str, folder: Path) -> Path:
    """The archive in `folder`, whole. What an earlier start left of it there is gone on with."""
    store, archive = open_store(place), folder / name
    _clear(folder, archive, *unfinished(archive))
    algorithm, wanted = _checksum(spec, store, name, folder)
    if wanted is None and store.exists(name):
        cure = f"set dataset.sha256, or write it beside: sha256sum {name} > {name}.sha256"
        raise DataError(f"{place}/{name}", "nothing says what its checksum should be", cure)
    if not archive.exists() or _digest(archive, algorithm) != wanted:
        archive.unlink(missing_ok=True)
        store.get(name, archive)
        if (found := _digest(archive, algorithm)) != wanted:
            raise DataError(f"{place}/{name}", f"its checksum is {found}, not {wanted}", "copy the archive again")
    return archive


def _checksum(spec: Dataset, store: Store, name: str, folder: Path) -> tuple[str, str | None]:
    """What the archive's should be: by dataset.sha256, the .sha256 file beside the archive, or the official md5."""
    if spec.sha256 is not None:
        return "sha256", spec.sha256
    if store.exists(f"{name}.sha256"):
        store.get(f"{name}.sha256", folder / "sum")
        if words := (folder / "sum").read_text(encoding="utf-8", errors="replace").split():
            return "sha256", words[0].lower()
    official = OFFICIAL.get(spec.name)
    return "md5", None if official is None else official.archive_md5


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


@contextlib.contextmanager
def _beside(root: Path, key: str) -> Iterator[Path]:
    """A folder on the same disk as `root`, the same one for the same `key`, for one process at a time.

    It goes away at the end; what a kill left in it is found again, and so is what came of a store that stopped
    answering. Of what does not fit on the disk, nothing stays.
    """
    folder = root / f".fetch-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    with disk_errors(root, "dataset.root"), contextlib.ExitStack() as stack:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # who had it before has just removed it
                lock = stack.enter_context((folder / LOCK).open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK).stat()):
                    break
        held = stack.pop_all()
    with held:
        try:
            yield folder
        except BaseException as error:
            if isinstance(error, Exception) and not _may_go_on(error):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _may_go_on(error: Exception) -> bool:
    cause = error.__cause__
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, StoreError) and not error.final and not full


def _clear(folder: Path, *keep: Path) -> None:
    """What else a killed process left there."""
    for path in set(folder.iterdir()) - {folder / LOCK, *keep}:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _refuse_other(target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        what = "something else lies where the data set should go"
        raise DataError(str(target), what, "empty it or name another root")


def _put_in_place(source: Path, target: Path) -> None:
    with disk_errors(target, "dataset.root"):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)  # over an empty folder too
