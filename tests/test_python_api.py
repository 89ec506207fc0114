"""What a program may give to be scored, and what it is told when that is no picture."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import encode, make_image
from helpers_browser import served

from grmp_edge.bundle import Bundle
from grmp_edge.errors import ImageError
from grmp_edge.runtime import Failure, Score, Scorer

IMAGE = make_image(120, 160, seed=3)
PNG = encode(IMAGE, "PNG")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    (path / "photo.png").write_bytes(PNG)
    return path


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder) as at:
        yield at.removeprefix("http://").rstrip("/")


def test_every_kind_of_picture_has_the_score_of_its_file(
    tiny_bundle: Bundle, folder: Path, address: str
) -> None:
    import torch
    from PIL import Image

    path = folder / "photo.png"
    with Scorer.open(tiny_bundle) as scorer, path.open("rb") as file:
        expected = scorer.score(path).value
        kinds: dict[str, Any] = {
            "str": str(path),
            "address": f"http://user:secret@{address}/photo.png",
            "bytes": PNG,
            "bytearray": bytearray(PNG),
            "memoryview": memoryview(PNG),
            "file": file,
            "BytesIO": io.BytesIO(PNG),
            "array": IMAGE,
            "Pillow": Image.open(io.BytesIO(PNG)),
            "tensor": torch.from_numpy(IMAGE),
        }
        for kind, picture in kinds.items():
            result = scorer.score(picture)
            assert result.value == pytest.approx(expected, abs=1e-6), kind
            assert "secret" not in result.source
        floats = torch.from_numpy(IMAGE).float() / 255
        assert scorer.score(floats, data_range=1.0).value == pytest.approx(expected, abs=1e-6)


def test_lists_and_generators_give_scores_in_order(tiny_bundle: Bundle, folder: Path) -> None:
    with Scorer.open(tiny_bundle) as scorer:
        expected = scorer.score(IMAGE).value
        mixed = [folder, PNG, IMAGE, b"no picture", 7, io.BytesIO(PNG)]
        for pictures in ([*mixed[:-1], io.BytesIO(PNG)], iter(mixed)):
            results = list(scorer.score_many(pictures))  # type: ignore[arg-type]
            assert [type(result) for result in results] == [Score, Score, Score, Failure, Failure, Score]
            values = [result.value for result in results if isinstance(result, Score)]
            assert values == pytest.approx([expected] * 4, abs=1e-6)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (None, "an object of type NoneType is not a picture"),
        ({"a": 1}, "an object of type dict is not a picture"),
        (["a.png", "b.png"], "an object of type list is not a picture; .*score_many"),
        ([[1], [1, 2]], "an object of type list is not a picture"),
        (7, "an object of type int is not a picture"),
        (io.StringIO("text"), "read as str, not bytes"),
        (Path("clip.mp4"), r"clip\.mp4: a clip, which has many scores; give a list of it"),
    ],
    ids=str,
)
def test_what_is_no_picture_is_named_by_its_type(tiny_bundle: Bundle, picture: Any, message: str) -> None:
    with Scorer.open(tiny_bundle) as scorer, pytest.raises(ImageError, match=message):
        scorer.score(picture)


def test_tensors_that_cannot_be_read_say_so(tiny_bundle: Bundle) -> None:
    import torch

    with Scorer.open(tiny_bundle) as scorer:
        with pytest.raises(ImageError, match=r"torch\.Tensor: .*detach"):
            scorer.score(torch.zeros(8, 8, 3, requires_grad=True), data_range=1.0)
        with pytest.raises(ImageError, match=r"torch\.Tensor: a tensor in a GPU's memory"):
            scorer.score(type("Tensor", (), {"__module__": "torch", "__dlpack__": None,
                                             "__dlpack_device__": lambda _: (2, 0)})())  # fmt: skip


def test_the_function_scores_with_the_shipped_model(folder: Path) -> None:
    """Whether the module of the same name was imported before or not."""
    code = """if True:
        import sys
        from pathlib import Path
        {before}
        from grmp_edge import Scorer, score
        path = Path(sys.argv[1])
        with Scorer.open() as scorer:
            value = scorer.score(path).value
        assert abs(score(path).value - value) < 1e-6
        assert [abs(one.value - value) < 1e-6 for one in score([path.parent])] == [True]
        assert [abs(one.value - value) < 1e-6 for one in score(p for p in [path])] == [True]
        with path.open("rb") as file:
            assert abs(score(file).value - value) < 1e-6
        print("fine")
    """
    for before in ("", "import numpy; from grmp_edge.score import Score"):
        command = [sys.executable, "-c", code.format(before=before), str(folder / "photo.png")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout == "fine\n", done.stderr


def test_tables_of_numbers_are_arrays(tiny_bundle: Bundle) -> None:
    with Scorer.open(tiny_bundle) as scorer, pytest.raises(ImageError, match="pixels of type int64"):
        scorer.score(np.zeros((8, 8, 3), np.int64))
