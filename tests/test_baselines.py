"""Hand-crafted metrics: their features against definitions written down here, their rows on the splits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.ndimage as ndimage
import scipy.optimize as optimize
import scipy.stats as stats
from conftest import UInt8Array, make_image
from helpers_train import write_labelled
from PIL import Image
from scipy.special import gamma
from typer.testing import CliRunner

from grmp_edge.cli import app
from grmp_edge.errors import CheckpointError, DataError, UsageError
from grmp_edge.preprocess import read_image
from grmp_edge.train.data.labelled import Labelled, SplitConfig, read_csv, split_indices
from grmp_edge.train.evaluate import niqe
from grmp_edge.train.evaluate.baselines import run_baselines
from grmp_edge.train.evaluate.handcrafted import Brisque, Laplacian, Niqe, metrics_named
from grmp_edge.train.evaluate.protocol import ProtocolConfig, summarize
from grmp_edge.train.evaluate.svr import SvrConfig, fit_predict


def textured(height: int = 208, width: int = 300, seed: int = 0) -> UInt8Array:
    """Smooth colours with fine noise on them, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(0, 40, (height, width, 3)), (0.7, 0.7, 0))
    return np.asarray(np.clip(make_image(height, width, seed) * 0.6 + 50 + noise, 0, 255), np.uint8)


def moments(values: np.ndarray) -> tuple[float, float, float]:
    """An asymmetric generalised Gaussian by its defining equations, the shape by bisection."""
    left = np.sqrt(np.mean(values[values < 0] ** 2))
    right = np.sqrt(np.mean(values[values > 0] ** 2))
    g = left / right
    wanted = np.mean(np.abs(values)) ** 2 / np.mean(values**2) * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    low, high = 0.2, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        if gamma(2 / middle) ** 2 / (gamma(1 / middle) * gamma(3 / middle)) < wanted:
            low = middle
        else:
            high = middle
    return low, left, right


def normalised(grey: np.ndarray, constant: float, mode: str) -> np.ndarray:
    at = np.arange(-3, 4)
    window = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mean = ndimage.correlate(grey, window, mode=mode)
    spread = np.sqrt(np.abs(ndimage.correlate(grey**2, window, mode=mode) - mean**2))
    return np.asarray((grey - mean) / (spread + constant))


def test_niqe_features_are_the_papers() -> None:
    grey = cv2.cvtColor(textured(), cv2.COLOR_RGB2GRAY).astype(np.float64)
    found = niqe.block_features(grey)
    assert found.shape == (2 * 3, 36)
    whole = grey[:192, :288]
    half = np.asarray(Image.fromarray(whole.astype(np.float32)).resize((144, 96), Image.Resampling.BICUBIC))
    for scale, (image, side) in enumerate(((whole, 96), (half.astype(np.float64), 48))):
        structure = normalised(image, 1.0, "nearest")
        for number in range(6):
            row, column = divmod(number, 3)
            block = structure[row * side : (row + 1) * side, column * side : (column + 1) * side]
            alpha, left, right = moments(block)
            beta = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
            wanted = [alpha, beta * (left + right) / 2]
            for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
                alpha, left, right = moments(block * np.roll(block, shift, (0, 1)))
                beta = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
                mean = (right - left) * beta * gamma(2 / alpha) / gamma(1 / alpha)
                wanted += [alpha, mean, left * beta, right * beta]
            # The shape comes from a table of thousandths; PIL treats the half-size picture's edges otherwise.
            tolerance = 0.002 if scale == 0 else 0.03
            np.testing.assert_allclose(found[number, 18 * scale : 18 * scale + 18], wanted, atol=tolerance)


def test_half_size_is_the_antialiased_bicubic() -> None:
    grey = cv2.cvtColor(textured(), cv2.COLOR_RGB2GRAY).astype(np.float64)
    wanted = np.asarray(Image.fromarray(grey.astype(np.float32)).resize((150, 104), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(niqe.half_size(grey)[3:-3, 3:-3], wanted[3:-3, 3:-3], atol=1e-3)


def test_niqe_is_the_distance_of_two_gaussians() -> None:
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(36, 36))
    pristine = niqe.Pristine(rng.normal(size=36), mixing @ mixing.T)
    blocks = rng.normal(size=(50, 36))
    off = blocks.mean(0) - pristine.mean
    pooled = (np.cov(blocks.T) + pristine.covariance) / 2
    assert niqe.distance(blocks, pristine) == pytest.approx(np.sqrt(off @ np.linalg.solve(pooled, off)))
    assert np.isnan(niqe.distance(blocks[:0], pristine))


def test_niqe_of_the_authors_model_and_of_ones_own(tmp_path: Path) -> None:
    image = textured(300, 400)
    noisy = np.clip(image + np.random.default_rng(1).normal(0, 60, image.shape), 0, 255).astype(np.uint8)
    soft = np.asarray(cv2.GaussianBlur(image, (0, 0), 3), np.uint8)
    published = Niqe()
    scores = [published.measure(one)[1] for one in (image, noisy, soft)]
    assert scores[0] > scores[1] and scores[0] > scores[2]  # higher is better
    features, _ = published.measure(image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    np.testing.assert_allclose(features, niqe.block_features(grey).mean(0))
    with pytest.raises(DataError, match="at least 72 sharp blocks"):
        niqe.fit_pristine([grey])
    for number in range(12):
        Image.fromarray(textured(300, 400, number)).save(tmp_path / f"{number}.png")
    own = Niqe(tmp_path)
    # Against the same kind of pictures, one of them is nearly perfect.
    assert -own.measure(textured(300, 400, 99))[1] < 0.5 * -own.measure(noisy)[1]
    with pytest.raises(DataError, match="90 x 80 pixels is too small for NIQE"):
        own.measure(textured(80, 90))
    assert np.isnan(own.measure(np.full((200, 200, 3), 9, np.uint8))[1])
    with pytest.raises(UsageError, match="no pictures there"):
        Niqe(tmp_path / "none")


def test_brisque_features_and_the_sign_of_its_score() -> None:
    image = textured(120, 160)
    features, score = Brisque().measure(image)
    assert features.shape == (36,)
    grey = image @ np.array([0.2125, 0.7154, 0.0721]) / 255
    structure = normalised(grey, 1 / 255, "constant")
    alpha, left, right = moments(structure)
    np.testing.assert_allclose(features[:2], [alpha, (left**2 + right**2) / 2], rtol=1e-3)
    neighbours = (
        structure[:, :-1] * structure[:, 1:],
        structure[:-1] * structure[1:],
        structure[:-1, :-1] * structure[1:, 1:],
        structure[1:, :-1] * structure[:-1, 1:],
    )
    for number, product in enumerate(neighbours):
        alpha, left, right = moments(product)
        beta = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
        mean = (right - left) * beta * gamma(2 / alpha) / gamma(1 / alpha)
        wanted = [alpha, mean, left**2, right**2]
        np.testing.assert_allclose(features[2 + 4 * number :][:4], wanted, rtol=2e-3, atol=1e-4)
    noisy = np.clip(image + np.random.default_rng(1).normal(0, 60, image.shape), 0, 255).astype(np.uint8)
    assert Brisque().measure(noisy)[1] < score  # higher is better
    assert np.isnan(Brisque().measure(np.full((64, 64, 3), 7, np.uint8))[1])


def test_laplacian_variance() -> None:
    image = textured(64, 96)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    wanted = ndimage.correlate(grey, kernel, mode="mirror").var()
    features, score = Laplacian().measure(image)
    assert score == pytest.approx(wanted) and features[0] == pytest.approx(np.log(wanted + 1e-3))
    quarter = grey.reshape(16, 4, 24, 4).mean((1, 3))
    wanted = ndimage.correlate(quarter, kernel, mode="mirror").var()
    assert features[2] == pytest.approx(np.log(wanted + 1e-3))


def test_the_svr_learns_a_curve_and_looks_at_no_more_than_it_is_given() -> None:
    rng = np.random.default_rng(0)
    features = rng.uniform(0, 10, (80, 3))
    target = 0.5 + 0.4 * np.sin(features[:, 0] / 2)
    found = fit_predict(features[:60], target[:60], features[60:], SvrConfig())
    assert stats.spearmanr(found.predicted, target[60:]).statistic > 0.95
    assert found.error < 0.01 and found.cost in SvrConfig().costs and found.gamma in SvrConfig().gammas
    again = fit_predict(features[:60], target[:60], features[60:][::-1], SvrConfig())
    np.testing.assert_allclose(again.predicted[::-1], found.predicted, rtol=1e-9)
    constant = np.ones((20, 2))  # nothing to learn from: the middle, and no division by zero
    flat = fit_predict(constant, target[:20], constant[:3], SvrConfig(costs=(1.0,), gammas=(1.0,)))
    assert np.isfinite(flat.predicted).all() and len(set(flat.predicted)) == 1


def dual_svr(
    train: np.ndarray, target: np.ndarray, test: np.ndarray, cost: float, gamma: float, epsilon: float
) -> np.ndarray:
    """Epsilon-SVR from its dual problem, by a general solver (Smola and Schoelkopf, 2004, equation 10)."""
    kernel = np.exp(-gamma * ((train[:, None] - train[None]) ** 2).sum(-1))
    count = len(train)

    def dual(a: np.ndarray) -> float:
        beta = a[:count] - a[count:]
        return float(beta @ kernel @ beta / 2 + epsilon * a.sum() - target @ beta)

    def slope(a: np.ndarray) -> np.ndarray:
        ahead = kernel @ (a[:count] - a[count:]) - target
        return np.concatenate([ahead + epsilon, epsilon - ahead])

    signs = np.repeat([1.0, -1.0], count)
    solved = optimize.minimize(
        dual, np.zeros(2 * count), jac=slope, bounds=[(0, cost)] * (2 * count), method="SLSQP",
        constraints={"type": "eq", "fun": lambda a: signs @ a, "jac": lambda a: signs},
        options={"ftol": 1e-10, "maxiter": 1000},
    )  # fmt: skip
    assert solved.success
    a, beta = solved.x, solved.x[:count] - solved.x[count:]
    rest = target - kernel @ beta
    free = (a > 1e-4 * cost) & (a < (1 - 1e-4) * cost)  # multipliers off their bounds give the offset
    assert free.any()
    offset = np.concatenate([rest - epsilon, rest + epsilon])[free].mean()
    across = np.exp(-gamma * ((test[:, None] - train[None]) ** 2).sum(-1))
    return np.asarray(across @ beta + offset)


def test_the_svr_is_the_dual_problem_solved_and_searched() -> None:
    rng = np.random.default_rng(4)
    features = rng.uniform([0, 5], [4, 25], (20, 2))
    target = np.clip(0.5 + 0.3 * np.sin(features[:, 0]) + rng.normal(0, 0.04, 20), 0, 1)
    config = SvrConfig(costs=(1.0, 10.0), gammas=(0.1, 0.8), folds=3, seed=3)
    fit = fit_predict(features[:13], target[:13], features[13:], config)
    scaled = 2 * (features - features[:13].min(0)) / np.ptp(features[:13], axis=0) - 1
    train, test, known = scaled[:13], scaled[13:], target[:13]
    order = np.random.default_rng([3, 0x5F0]).permutation(13)
    errors = {}
    for cost in config.costs:
        for width in config.gammas:
            squares = np.empty(13)
            for k in range(3):  # folds of 5, 4 and 4
                held, rest = order[k::3], np.setdiff1d(order, order[k::3])
                values = dual_svr(train[rest], known[rest], train[held], cost, width, config.epsilon)
                squares[held] = (values - known[held]) ** 2
            errors[cost, width] = squares.mean()
    best = min(errors, key=lambda key: errors[key])
    assert (fit.cost, fit.gamma) == best and fit.error == pytest.approx(errors[best], rel=0.03)
    assert sorted(errors.values())[1] > 1.1 * errors[best]  # so that the choice is no accident
    np.testing.assert_allclose(fit.predicted, dual_svr(train, known, test, *best, config.epsilon), atol=2e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    return read_csv(write_labelled(tmp_path_factory.mktemp("data"), 30, 100), mos_range=(0, 100))


def test_the_splits_are_the_models_and_what_is_done_is_kept(
    data: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ProtocolConfig(splits=2, labels=(8, 12))
    metrics = metrics_named(["laplacian", "brisque"])
    search = SvrConfig(costs=(1.0, 8.0), gammas=(0.1, 1.0))
    result = run_baselines(tmp_path, metrics, data, config, search)
    rows = [(row["method"], row["labels"], row["splits"]) for row in summarize(result)]
    assert rows == [(m, n, 2) for m in ("Laplacian variance", "BRISQUE") for n in (0, 8, 12)]
    found = json.loads((tmp_path / "laplacian" / "splits" / "0-01.json").read_bytes())
    test = list(split_indices(data, SplitConfig(8, 0.2, 0.2, 1)).test)
    assert found["predictions"]["index"] == test
    scores = [Laplacian().measure(read_image(data.paths[i]))[1] for i in test]
    np.testing.assert_allclose(found["predictions"]["value"], scores)
    assert found["metrics"]["srcc"] == pytest.approx(stats.spearmanr(scores, data.mos[test]).statistic)
    assert found["metrics"]["rmse"] is None
    learned = json.loads((tmp_path / "laplacian" / "splits" / "8-01.json").read_bytes())
    values = learned["predictions"]["value"]
    wanted = np.sqrt(np.mean((np.array(values) - data.mos[test] / 100) ** 2))
    assert learned["metrics"]["rmse"] == pytest.approx(wanted)
    assert learned["svr"]["cost"] in search.costs

    def never(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(Laplacian, "measure", never)
    lost = tmp_path / "laplacian" / "splits" / "8-01.json"
    lost.unlink()
    again = run_baselines(tmp_path, metrics, data, config, search)
    assert again == result and lost.exists()
    with pytest.raises(CheckpointError, match="other settings \\(search differs\\)"):
        run_baselines(tmp_path, metrics, data, config)


def test_a_flat_picture_is_counted_and_does_not_spoil_the_rest(tmp_path: Path) -> None:
    labels = write_labelled(tmp_path / "data", 12, 64)
    cv2.imwrite(str(tmp_path / "data" / "3.png"), np.full((64, 64, 3), 128, np.uint8))

    class Notes:
        said: list[str] = []  # noqa: RUF012

        def start(self, stage: str, total: int, done: int = 0) -> None: ...
        def step(self, count: int = 1, **metrics: float) -> None: ...
        def note(self, text: str) -> None:
            self.said.append(text)

    config = ProtocolConfig(splits=1, labels=(6,))
    search = SvrConfig(costs=(1.0,), gammas=(0.1,))
    found = run_baselines(
        tmp_path / "out", metrics_named(["brisque"]), read_csv(labels), config, search, Notes()
    )
    assert Notes.said == ["BRISQUE: 1 pictures have no texture to measure"]
    assert all(row["srcc"]["median"] is not None for row in summarize(found))


def test_the_command_without_torch_or_a_model(data: Labelled, tmp_path: Path) -> None:
    words = ["evaluate", "--data", data.name, "--mos-range", "0,100", "--splits", "1", "--labels", "8"]
    words += ["--baselines", "laplacian", "--only-baselines", "-o", str(tmp_path)]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "Laplacian variance" in shown.stdout and "hand-crafted metrics" in shown.stdout
    assert (tmp_path / "table.md").read_text().count("| Laplacian variance |") == 2
    assert not (tmp_path / "pretrain").exists()


def test_the_baselines_load_no_torch() -> None:
    code = (
        "import sys\n"
        "from grmp_edge.cli import evaluate\n"
        "from grmp_edge.train.evaluate import baselines, handcrafted, plot, svr, tables\n"
        "handcrafted.metrics_named(handcrafted.METRICS)\n"
        "print([name for name in ('torch', 'open_clip') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
