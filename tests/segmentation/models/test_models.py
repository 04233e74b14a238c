"""The registry, the U-Net and states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secfl.config import ModelConfig
from secfl.errors import ConfigError
from secfl.segmentation.models import ModelSpec, build_model, families
from secfl.segmentation.models.state import load_state, state_of


def spec(**changes):
    return ModelSpec(
        **{
            "family": "unet",
            "in_channels": 3,
            "classes": 2,
            "channels": (4, 8, 8),
            "normalization": "instance",
        }
        | changes
    )


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("normalization", ["instance", "group"])
class TestEveryFamily:
    def test_logits_have_the_size_of_the_image(self, family, normalization):
        built = spec(family=family, normalization=normalization, classes=3)
        model = build_model(built, seed=0)
        image = torch.randn(2, 3, 5 * built.multiple, 3 * built.multiple)
        assert model(image).shape == (2, 3, *image.shape[2:])

    def test_a_patient_does_not_change_another_ones_output(self, family, normalization):
        model = build_model(spec(family=family, normalization=normalization), seed=0).train()
        batch = torch.randn(3, 3, 16, 16)
        other = batch.clone()
        other[1:] *= 10
        torch.testing.assert_close(model(batch)[0], model(other)[0])

    def test_nothing_is_kept_outside_the_parameters(self, family, normalization):
        model = build_model(spec(family=family, normalization=normalization), seed=0).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model(torch.randn(2, 3, 16, 16))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_every_parameter_learns(self, family, normalization):
        model = build_model(spec(family=family, normalization=normalization), seed=0)
        model(torch.randn(2, 3, 16, 16)).square().mean().backward()
        assert all(value.grad is not None and value.grad.any() for value in model.parameters())

    def test_the_seed_decides_and_torch_is_left_alone(self, family, normalization):
        built = spec(family=family, normalization=normalization)
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        one, same, other = (state_of(build_model(built, seed=seed)) for seed in (1, 1, 2))
        assert torch.equal(torch.rand(3), expected)
        assert all(np.array_equal(one[name], same[name]) for name in one)
        assert any(not np.array_equal(one[name], other[name]) for name in one)


class TestState:
    def test_there_and_back(self):
        source, target = (build_model(spec(), seed=seed) for seed in (1, 2))
        state = state_of(source)
        assert all(value.dtype == np.float32 for value in state.values())
        assert sum(value.size for value in state.values()) == sum(p.numel() for p in source.parameters())
        load_state(target, state)
        image = torch.randn(1, 3, 16, 16)
        assert torch.equal(source(image), target(image))

    def test_it_is_a_copy(self):
        model = build_model(spec(), seed=1)
        state = state_of(model)
        before = {name: value.copy() for name, value in state.items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        assert all(np.array_equal(state[name], before[name]) for name in state)

    @pytest.mark.parametrize("damage", ["missing", "extra", "shape", "dtype"])
    def test_another_models_state_is_refused(self, damage):
        model = build_model(spec(), seed=1)
        state = dict(state_of(model))
        name = next(iter(state))
        if damage == "missing":
            del state[name]
        elif damage == "extra":
            name = "another"
            state[name] = np.zeros(1, np.float32)
        elif damage == "shape":
            state[name] = state[name].ravel()
        else:
            state[name] = state[name].astype(np.float64)
        with pytest.raises(ConfigError, match=rf"model state: tensor {name} "):
            load_state(model, state)


class TestUNet:
    def test_the_default_size(self):
        model = build_model(spec(channels=ModelConfig().channels), seed=0)
        assert 400_000 < sum(parameter.numel() for parameter in model.parameters()) < 500_000

    def test_it_sees_single_pixels(self):
        """A change of one pixel moves that pixel's logits most: the first level is at full resolution."""
        model = build_model(spec(in_channels=1), seed=0)
        image = torch.zeros(1, 1, 32, 32, requires_grad=True)
        logits = model(image + torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
        logits[0, 1, 13, 18].backward()
        assert image.grad is not None
        assert int(image.grad.abs().argmax()) in {
            row * 32 + column for row in (12, 13, 14) for column in (17, 18, 19)
        }

    @pytest.mark.parametrize("channels", [(8, 8), (8, 0, 8), ()])
    def test_too_few_levels(self, channels):
        with pytest.raises(ConfigError, match=r"model\.channels"):
            build_model(spec(channels=channels), seed=0)

    def test_groups_must_divide(self):
        with pytest.raises(ConfigError, match="multiples of 8"):
            build_model(spec(channels=(8, 12, 20), normalization="group"), seed=0)


def test_an_unknown_family_is_named():
    with pytest.raises(ConfigError, match=r"model\.name: 'vnet' is unknown; expected one of .*unet"):
        build_model(spec(family="vnet"), seed=0)
