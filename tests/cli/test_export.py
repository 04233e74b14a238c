"""``secfl export``: a run's model as ONNX gives what ``secfl predict`` gives."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from secfl.cli.main import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom") / "run"
    config = out.with_suffix(".toml")
    config.write_text(
        "threads = 1\n[data]\nphantom_task = 'dermoscopy'\nphantom_images = 8\nimage_size = 32\n"
        "[model]\nname = 'cnn'\nchannels = [4, 4, 4]\n[training]\nrounds = 1\n[secure_agg]\nscheme = 'plain'\n"
    )
    assert main(["simulate", "--config", str(config), "--out", str(out), "--quiet"]) == 0
    return out


def test_it_segments_as_predict_does(run, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert main(["predict", str(run), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "model.onnx")]) == 0
    assert "background" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    planes = pixels.transpose(2, 0, 1).astype(np.float32)
    mean, spread = (getattr(planes, name)(axis=(1, 2), keepdims=True) for name in ("mean", "std"))
    (logits,) = session.run(None, {"image": ((planes - mean) / spread)[None]})
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png")) > 0
    assert logits.shape[2:] == mask.shape
    assert ((logits[0].argmax(axis=0) > 0) == mask).mean() > 0.999


@pytest.mark.parametrize(
    ("name", "message"),
    [("model.pt", "ends in .onnx"), ("there.onnx", "exists already"), ("no/m.onnx", "no/m.onnx")],
)
def test_what_is_wrong_is_named(run, tmp_path, capsys, name, message):
    (tmp_path / "there.onnx").write_text("")
    before = sorted(tmp_path.iterdir())
    assert main(["export", str(run), "--out", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
