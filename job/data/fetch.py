"""Brings a data set to where it belongs: from a mirror's archive or by torchvision's download, whole or not at all.

Everything is unpacked beside its place, under a name that starts with a dot, and renamed at the end: a half-written
folder is never taken for a data set.
"""

import contextlib
import hashlib
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from job.data.official import OFFICIAL
from job.errors import DataError, JobError
from job.runfolder import disk_errors, sha256
from job.spec.schema import Dataset
from job.storage.store import open_store

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
MOST_FILES = 5_000_000
MOST_BYTES = 2 * 2**40
OFFLINE = "put the files in dataset.root, name a dataset.mirror, or give this machine a network"


def download(name: str, root: Path) -> None:
    """torchvision's own download into a folder of its own, then one rename."""
    official = OFFICIAL[name]
    with _beside(root) as temporary:
        try:
            from torchvision import datasets

            getattr(datasets, official.torchvision)(str(temporary), train=True, download=True)
        except Exception as error:  # torchvision and urllib raise many kinds
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(name, f"the download failed ({reason})", OFFLINE) from error
        _put_in_place(temporary / official.folder, root / official.folder)


def unpack_mirror(spec: Dataset, root: Path) -> None:
    """Fetches the mirror's archive, checks its sum, unpacks it safely and puts the data set into `root`."""
    assert spec.mirror is not None
    place, name = archive_of(spec)
    with _beside(root if spec.name in OFFICIAL else root.absolute().parent) as temporary:
        archive = temporary / name
        store = open_store(place)
        try:
            store.get(name, archive)
        except JobError as error:
            raise DataError(error.where, error.what, error.cure) from error
        _check(spec, place, name, archive)
        unpacked = temporary / "unpacked"
        unpacked.mkdir()
        unpack(archive, unpacked, f"{place}/{name}")
        if spec.name in OFFICIAL:
            folder = OFFICIAL[spec.name].folder
            if not (unpacked / folder).is_dir():
                raise DataError(f"{place}/{name}", f"it holds no folder {folder}", "take the official archive")
            _put_in_place(unpacked / folder, root / folder)
            return
        content = unpacked
        while len(inside := list(content.iterdir())) == 1 and inside[0].is_dir():  # a folder around everything
            content = inside[0]
        _put_in_place(content, root)


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
            with disk_errors(folder):
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


def _check(spec: Dataset, place: str, name: str, archive: Path) -> None:
    """Against dataset.sha256, the .sha256 file beside the archive, or the official md5."""
    official = OFFICIAL.get(spec.name)
    wanted = spec.sha256 or _beside_archive(place, name, archive.parent)
    if wanted is not None:
        found = sha256(archive)
    elif official is not None and official.archive_md5 is not None:
        wanted, found = official.archive_md5, hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    else:
        cure = f"set dataset.sha256, or write it beside: sha256sum {name} > {name}.sha256"
        raise DataError(f"{place}/{name}", "nothing says what its checksum should be", cure)
    if found != wanted:
        raise DataError(f"{place}/{name}", f"its checksum is {found}, not {wanted}", "copy the archive again")


def _beside_archive(place: str, name: str, folder: Path) -> str | None:
    store = open_store(place)
    if not store.exists(f"{name}.sha256"):
        return None
    store.get(f"{name}.sha256", folder / "sum")
    words = (folder / "sum").read_text(encoding="utf-8", errors="replace").split()
    return words[0].lower() if words else None


@contextlib.contextmanager
def _beside(root: Path) -> Iterator[Path]:
    """A folder that goes away, on the same disk as `root`."""
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=root, prefix=".fetch-"))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(source: Path, target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        raise DataError(
            str(target), "something else lies where the data set should go", "empty it or name another root"
        )
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)  # over an empty folder too
