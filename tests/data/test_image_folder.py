"""Own images: every kind that people have, and one clear line for each that cannot be used."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from job.data import decode, image_folder
from job.data.dataset import load, locate
from job.data.image_folder import read_image
from job.errors import DataError
from job.spec.schema import Dataset

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def picture(number: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """An image that no other number gives."""
    generator = np.random.default_rng(number)
    image = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return image if mode == "RGB" else image.convert(mode)


def put(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of ten images of 8×8."""
    for label, name in enumerate(("cat", "dog")):
        for number in range(10):
            put(tmp_path / "images" / name / f"{number}.png", picture(100 * label + number))
    return tmp_path / "images"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies are kept, empty at first."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("JOB_CACHE_DIR", str(folder))
    return folder


def spec(root: Path, **keys: object) -> Dataset:
    return Dataset.model_validate({"name": "image_folder", "root": str(root), **keys})


def refusal(root: Path, **keys: object) -> str:
    with pytest.raises(DataError) as caught:
        load(spec(root, **keys))
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.exit_code == 3
    return line


def test_divided_80_to_20(root: Path) -> None:
    splits = load(spec(root))
    assert splits.classes == ("cat", "dog")
    assert splits.train.images.shape == (16, 8, 8, 3)
    assert np.bincount(splits.train.labels).tolist() == [8, 8]
    assert np.bincount(splits.test.labels).tolist() == [2, 2]
    assert splits.validation is None
    assert splits.leaked == 0


def test_the_pixels_are_those_of_the_files(root: Path) -> None:
    splits = load(spec(root))
    expected = {np.asarray(Image.open(path)).tobytes() for path in root.rglob("*.png")}
    found = [image.tobytes() for split in (splits.train, splits.test) for image in split.images[:]]
    assert len(found) == 20
    assert set(found) == expected


def test_the_order_on_disk_does_not_matter(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for path in sorted(root.rglob("*.png"), reverse=True):
        put(other / path.relative_to(root), Image.open(path))
    assert load(spec(root)).sha256 == load(spec(other)).sha256


def test_given_splits_are_kept(root: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    for part, count in (("train", 6), ("val", 2), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                put(given / part / name / f"{number}.png", picture(hash((part, label, number)) % 10**6))
    splits = load(spec(given, validation=0.3))
    assert splits.validation is not None
    assert (len(splits.train.labels), len(splits.validation.labels), len(splits.test.labels)) == (12, 4, 4)


def test_validation_is_cut_from_training(root: Path) -> None:
    splits = load(spec(root, validation=0.25))
    assert splits.validation is not None
    assert (len(splits.train.labels), len(splits.validation.labels), len(splits.test.labels)) == (12, 4, 4)
    assert splits.sha256 != load(spec(root)).sha256


def test_leakage_is_counted(root: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            for number in range(4):
                put(
                    tmp_path / "two" / part / name / f"{part}{number}.png",
                    picture(10 * label + number + (part == "test")),
                )
    splits = load(spec(tmp_path / "two"))
    assert splits.leaked == 6
    assert splits.notices[-1].startswith(
        "6 test images are pixel for pixel in the training data: accuracy is overstated"
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda root: [path.unlink() for path in root.rglob("*.png")],
            "{root}: there are no images in it; put them in",
        ),
        (lambda root: [path.unlink() for path in (root / "dog").iterdir()], "{root}/dog: the class has no images; add"),
        (
            lambda root: [[path.unlink() for path in (root / "dog").iterdir()], (root / "dog").rmdir()],
            "{root}: there is one class only, 'cat'; add a folder for another class",
        ),
        (
            lambda root: (root / "dog/3.png").write_bytes((root / "dog/3.png").read_bytes()[:60]),
            "{root}: 1 file cannot be used: dog/3.png: it is damaged (",
        ),
        (
            lambda root: (root / "cat/0.png").write_text("<html>"),
            "{root}: 1 file cannot be used: cat/0.png: it is not an image; repair or remove them, or set "
            "dataset.on_bad_image: skip",
        ),
        (
            lambda root: put(root / "dog/9.png", picture(1, (9, 7))),
            "dataset.resize: images differ in size: {root}/cat/0.png is 8×8, {root}/dog/9.png is 9×7; "
            "set dataset.resize, for example to 7",
        ),
    ],
    ids=["no images", "empty class", "one class", "truncated", "no image", "sizes"],
)
def test_what_cannot_be_used_is_one_line(root: Path, change: Callable[[Path], object], line: str) -> None:
    change(root)
    assert refusal(root).startswith(line.format(root=root))


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: there is no such folder; set dataset\.root to the folder"):
        locate(spec(tmp_path / "none"))


def test_bad_files_are_skipped_and_listed(root: Path) -> None:
    (root / "cat/0.png").write_text("<html>")
    (root / "dog/1.png").write_bytes(b"")
    splits = load(spec(root, on_bad_image="skip"))
    assert [line.partition(":")[0] for line in splits.skipped] == ["cat/0.png", "dog/1.png"]
    assert splits.notices == ("2 bad files left out; the first: cat/0.png: it is not an image",)
    assert len(splits.train.labels) + len(splits.test.labels) == 18


def test_skipping_a_whole_class_is_an_error(root: Path) -> None:
    for path in (root / "dog").iterdir():
        path.write_text("no")
    assert refusal(root, on_bad_image="skip").startswith(f"{root}: the class 'dog' has no image that can be used; add")


def test_a_class_that_only_the_test_split_has(root: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    for part, names in (("train", "ab"), ("test", "abc")):
        for label, name in enumerate(names):
            put(given / part / name / "1.png", picture(label + 10 * (part == "test")))
    assert refusal(given) == (
        f"{given}: the class 'c' is in test and not in train; add training images of it or remove it there"
    )


def test_too_few_to_divide(root: Path) -> None:
    for path in sorted((root / "dog").iterdir())[1:]:
        path.unlink()
    assert refusal(root) == (
        "dataset.split: the class 'dog' has 1 image, too few to train and to test; "
        "add images of it, or give train/ and test/ folders"
    )


def test_a_subset_larger_than_the_data(root: Path) -> None:
    assert refusal(root, subset=17) == (
        "dataset.subset: 17 images are asked for, 16 are there; ask for 16 at most, or for a fraction"
    )


def test_a_subset_too_small_for_its_classes(root: Path, tmp_path: Path) -> None:
    for number in range(5):
        put(root / f"class{number}" / "1.png", picture(900 + number))
        put(root / f"class{number}" / "2.png", picture(950 + number))
    assert "a class" in refusal(root, subset=2, split={"train": 0.5, "seed": 0})


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("1", "1 image, black and white: taken as grey; the first: cat/0.png"),
        ("P", "1 image, palette images: their colours were looked up; the first: cat/0.png"),
        ("RGBA", "1 image, RGBA: transparency was laid over white; the first: cat/0.png"),
        ("L", "1 image, grey among colour images: taken as RGB; the first: cat/0.png"),
        ("I;16", "1 image, 16-bit: scaled to 8 bits; the first: cat/0.png"),
    ],
)
def test_other_modes_are_converted_and_said(root: Path, mode: str, words: str) -> None:
    image = picture(0, mode="L").convert("I;16") if mode == "I;16" else picture(0, mode=mode)
    put(root / "cat/0.png", image)
    splits = load(spec(root))
    assert splits.notices == (words,)
    assert splits.train.images.shape[3] == 3


def test_all_grey_has_one_channel(root: Path) -> None:
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        put(path, picture(number, mode="L"))
    splits = load(spec(root))
    assert splits.train.images.shape[3] == 1
    assert splits.notices == ()
    assert load(spec(root, color="rgb")).train.images.shape[3] == 3


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    values = np.array([[0, 257], [65535, 32896]], np.uint16)
    path = put(tmp_path / "deep.png", Image.fromarray(values))
    assert read_image(path, 2, 1)[..., 0].tolist() == [[0, 1], [255, 128]]


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    path = put(tmp_path / "clear.png", Image.new("RGBA", (4, 4), (255, 0, 0, 0)))
    assert read_image(path, 4, 3).tolist() == [[[255, 255, 255]] * 4] * 4


def test_the_camera_may_lie_on_its_side(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    image.save(tmp_path / "side.png", exif=exif)
    turned = read_image(tmp_path / "side.png", 4, 1)[..., 0]
    assert turned[:2].min() == 255
    assert turned[2:].max() == 0


@pytest.mark.parametrize("size", [(64, 40), (40, 64), (5, 5)])
def test_resize_cuts_out_the_middle(root: Path, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "black")
    image.paste("white", (size[0] // 4, size[1] // 4, size[0] - size[0] // 4, size[1] - size[1] // 4))
    put(root / "cat/0.png", image)
    splits = load(spec(root, resize=16))
    assert splits.train.images.shape[1:3] == (16, 16)
    middle = read_image(root / "cat/0.png", 16, 3)
    assert middle[8, 8].tolist() == [255, 255, 255]


def test_jpegs_are_read_at_a_smaller_scale(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.new("RGB", (640, 480), (200, 100, 50)).save(path)
    assert np.abs(read_image(path, 32, 3).astype(int) - [200, 100, 50]).max() <= 3


def test_other_files_are_passed_over(root: Path) -> None:
    (root / "cat/notes.txt").write_text("mine")
    (root / "cat/.hidden.png").write_text("mine")
    (root / ".git").mkdir()
    assert load(spec(root)).notices == ("files that are no images were passed over: 1 .txt",)


def test_class_names_are_text_whatever_they_hold(root: Path) -> None:
    (root / "cat").rename(root / "<b>ca\nt 猫")
    assert load(spec(root)).classes == ("<b>ca\nt 猫", "dog")


def test_a_bomb_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert "it has more than 50 pixels" in refusal(root)


@pytest.fixture(params=["kept", "memory", "encoded"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Each place that pixels can be in: keys of the spec, and a machine that leads there."""
    if request.param == "encoded":
        monkeypatch.setattr(image_folder, "available_memory", lambda: 100)
    return {"cache": "auto" if request.param == "kept" else False}


def photos(root: Path, size: tuple[int, int] = (50, 40)) -> Path:
    """Ten JPEGs a class, and one image of every other kind."""
    for label, name in enumerate(("cat", "dog")):
        for number in range(10):
            put(root / name / f"{number}.jpg", picture(100 * label + number, size))
    put(root / "cat/grey.jpg", picture(900, size, "L"))
    put(root / "cat/cmyk.jpg", picture(901, size, "CMYK"))
    put(root / "dog/palette.png", picture(902, size, "P"))
    put(root / "dog/clear.png", picture(903, size, "RGBA"))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture(904, size).save(root / "dog/turned.jpg", exif=exif)
    return root


@pytest.mark.parametrize("resize", [None, 16])
def test_the_same_pixels_wherever_they_are(tmp_path: Path, way: dict[str, object], resize: int | None) -> None:
    root = photos(tmp_path / "photos")
    splits = load(spec(root, resize=resize, **way))
    plain = load(spec(root, resize=resize, cache=False))
    for one, other in ((splits.train, plain.train), (splits.test, plain.test)):
        assert np.array_equal(one.images[:], other.images[:])
        assert np.array_equal(one.labels, other.labels)
    facts = ("sha256", "mean", "std", "classes", "notices", "leaked")
    assert [getattr(splits, fact) for fact in facts] == [getattr(plain, fact) for fact in facts]
    assert len(splits.notices) == 4


def test_the_second_start_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos(tmp_path / "photos")
    first = load(spec(root, resize=16))

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(image_folder, "decode", refuse)
    second = load(spec(root, resize=16, validation=0.2))
    assert np.array_equal(load(spec(root, resize=16)).train.images[:], first.train.images[:])
    assert second.validation is not None


def test_planning_writes_nothing_and_reads_what_is_kept(root: Path, cache: Path) -> None:
    load(spec(root), keep=False)
    assert list(cache.iterdir()) == []
    load(spec(root))
    before = sorted(cache.rglob("*"))
    load(spec(root), keep=False)
    assert sorted(cache.rglob("*")) == before


@pytest.mark.parametrize("change", ["pixels", "content", "time", "new file"])
def test_another_state_is_another_copy(root: Path, cache: Path, change: str) -> None:
    before = load(spec(root)).sha256
    if change == "pixels":
        [pixels] = cache.rglob("pixels")
        damaged = bytearray(pixels.read_bytes())
        damaged[7] ^= 1
        pixels.write_bytes(damaged)
    elif change == "content":
        put(root / "cat/3.png", picture(777))
    elif change == "time":
        os.utime(root / "cat/3.png", ns=(1, 1))
    else:
        put(root / "cat/99.png", picture(778))
    again = load(spec(root))
    assert (again.sha256 == before) == (change in {"pixels", "time"})
    assert again.sha256 == load(spec(root, cache=False)).sha256
    words = [notice for notice in again.notices if "was damaged and is made anew: 1 of its 20 images" in notice]
    assert len(words) == (change == "pixels")
    assert len([path for path in (cache / "images").iterdir() if path.is_dir()]) == 1, "the older copy is gone"
    assert load(spec(root)).notices == ()


def test_a_folder_that_cannot_be_written_is_said_once(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    splits = load(spec(root, cache=str(tmp_path / "file/below")))
    [notice] = splits.notices
    assert notice.startswith(f"no decoded copy is kept in {tmp_path}/file/below/images (not a directory), so every")
    assert splits.sha256 == load(spec(root, cache=False)).sha256


def test_copies_that_are_too_large_are_not_kept_but_what_they_told_is(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = load(spec(root, cache_limit=1000))
    assert [path.stat().st_size for path in cache.rglob("pixels")] == [0]
    monkeypatch.setattr(image_folder, "_survey", None)
    again = load(spec(root, cache_limit=1000))
    assert again.sha256 == splits.sha256
    assert np.array_equal(again.train.images[:], splits.train.images[:])


def test_the_copy_used_longest_ago_makes_room(root: Path, cache: Path) -> None:
    for side, used in ((8, 200), (4, 100)):
        load(spec(root, resize=side))
        newest = max((cache / "images").iterdir(), key=lambda path: path.is_dir() and path.stat().st_mtime_ns)
        os.utime(newest, (used, used))
    load(spec(root, resize=6, cache_limit=9000))
    kept = {path.stat().st_size for path in cache.rglob("pixels")}
    assert kept == {20 * 8 * 8 * 3, 20 * 6 * 6 * 3}


def test_two_processes_make_one_copy(root: Path, cache: Path) -> None:
    code = (
        "from job.data.dataset import load; from job.spec.schema import Dataset; "
        f"print(load(Dataset(name='image_folder', root={str(root)!r})).sha256)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert printed == {load(spec(root)).sha256 + "\n"}
    assert len(list(cache.rglob("pixels"))) == 1


def test_a_process_killed_while_it_made_a_copy_leaves_none(root: Path, cache: Path) -> None:
    load(spec(root))
    [made] = [path for path in (cache / "images").iterdir() if path.is_dir()]
    (made / "about.json").unlink()
    made.rename(made.with_name(f".{made.name}.part"))
    assert load(spec(root)).notices == ()
    assert made.is_dir()
    assert not made.with_name(f".{made.name}.part").exists()


def test_leaving_early_leaves_no_half_copy(root: Path, cache: Path) -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(spec(root), poll=leave)
    assert [path for path in (cache / "images").iterdir() if path.is_dir()] == []


def test_a_file_that_goes_bad_later_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "available_memory", lambda: 100)
    splits = load(spec(root, cache=False))
    for path in root.rglob("*.png"):
        path.write_bytes(b"gone")
    with pytest.raises(DataError, match=r"\.png: it is not an image; it was whole when this data set was first read"):
        splits.train.images[:3]


def test_plain_jpegs_are_those_of_torchvision(tmp_path: Path) -> None:
    from torchvision.io import ImageReadMode, decode_image

    path = put(tmp_path / "one.jpg", picture(5, (48, 48)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision has announced another decoder
        expected = decode_image(str(path), ImageReadMode.RGB).permute(1, 2, 0).numpy()
    assert np.array_equal(read_image(path, 48, 3), expected)


def test_without_torchvisions_decoder_pillow_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "one.jpg", picture(5, (48, 48)))
    usual = read_image(path, 48, 3)
    monkeypatch.setattr(decode, "_operator", lambda: None)
    assert np.abs(read_image(path, 48, 3).astype(int) - usual).max() <= 2
