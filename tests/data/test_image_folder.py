"""Own images: every kind that people have, and one clear line for each that cannot be used."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def test_a_data_set_larger_than_memory_is_mapped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from job.data import image_folder

    in_memory = load(spec(root))
    monkeypatch.setattr(image_folder, "available_memory", lambda: 100)
    assert load(spec(root)).sha256 == in_memory.sha256
