"""Looking at a split: probabilities in its order, alone or together with each image's mirror image."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from job import inference, pipeline
from job.data.dataset import Split
from job.data.loader import Pixels
from job.device import Device
from job.events import Result
from job.interrupt import StopFlag
from job.spec.load import parse
from job.training.evaluate import predict

CPU = Device("cpu", "test", "fp32", compile=False, channels_last=False, threads=1)
PIXELS = Pixels.on(CPU, (0.0,) * 3, (1.0,) * 3)


class Left(nn.Module):
    """Sees the left column only: its logit for class 0 is the column's sum."""

    def forward(self, images: Tensor) -> Tensor:
        seen = images[..., 0].sum((1, 2))
        return torch.stack([seen, torch.zeros_like(seen)], 1)


def test_mirrored_is_the_mean_over_an_image_and_its_mirror_image() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 3, 3), dtype=np.uint8)
    split, turned = Split(images, np.zeros(5, np.int64)), Split(images[:, :, ::-1].copy(), np.zeros(5, np.int64))
    one, other = (predict(Left(), each, CPU, PIXELS).probabilities for each in (split, turned))
    both = predict(Left(), split, CPU, PIXELS, mirrored=True).probabilities
    np.testing.assert_allclose(both, (one + other) / 2, rtol=1e-6)
    assert not np.allclose(both, one)
    np.testing.assert_array_equal(both, predict(Left(), turned, CPU, PIXELS, mirrored=True).probabilities)


SPEC = """
name: digits
dataset: {name: digits, subset: 300}
loader: {batch_size: 32}
model: {name: resnet9, width: 2}
optimizer: {name: sgd, lr: 0.1}
train: {epochs: 1, device: cpu, mirror_test: true}
"""


@pytest.fixture(scope="module")
def mirrored_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    where = tmp_path_factory.mktemp("runs")
    events = list(pipeline.job(parse(SPEC, "spec.yaml", [f"store.uri={where}"]), "run", StopFlag()))
    [result] = [event for event in events if isinstance(event, Result)]
    return where / "run", result


def test_evaluate_and_predict_do_as_the_run_did(mirrored_run: tuple[Path, Result], tmp_path: Path) -> None:
    """What is in model.json decides, so that a copy of the run tells the accuracy that the run told."""
    folder, result = mirrored_run
    assert inference.evaluate(folder).loss == pytest.approx(result.loss, rel=1e-6)
    description = folder / "model" / "model.json"
    saved = description.read_text(encoding="utf-8")
    assert json.loads(saved)["mirror_test"] is True
    image = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    paths = [tmp_path / "one.png", tmp_path / "mirrored.png"]
    for path, pixels in zip(paths, (image, image[:, ::-1].copy()), strict=True):
        Image.fromarray(pixels).save(path)
    told = [line.partition(": ")[2] for line in inference.predict(folder, paths)]
    assert told[0] == told[1]
    try:
        description.write_text(saved.replace('"mirror_test": true', '"mirror_test": false'), encoding="utf-8")
        assert inference.evaluate(folder).loss != pytest.approx(result.loss, rel=1e-6)
        alone = [line.partition(": ")[2] for line in inference.predict(folder, paths)]
        assert alone[0] != alone[1]
    finally:
        description.write_text(saved, encoding="utf-8")
