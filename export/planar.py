"""Graphs that read planar floats, as NVIDIA's DeepStream gives them, instead of the bundle's uint8 pixels.

nvinfer hands over float32 (batch, 3, size, size), R G B, scaled by ``net-scale-factor``; with 1.0 they are
0..255, which is what these graphs read. From the pixels on everything is the bundle's own graph, for each of
its precisions, with its weights inside.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from grmp_edge.bundle import Bundle
from grmp_edge.check_pictures import check_pictures
from grmp_edge.errors import BundleError, ParityError
from grmp_edge.export.parity import ParityConfig
from grmp_edge.files import replace_folder
from grmp_edge.parity import LIMITS
from grmp_edge.runtime.backends import open_session

__all__ = ["planar_folder", "write_planar"]


def planar_folder(bundle: Path) -> Path:
    """Where the planar graphs of a bundle go: a folder beside it."""
    return bundle.with_name(f"{bundle.name}.nchw-float")


def write_planar(bundle: Bundle, folder: Path) -> list[Path]:
    """Write a bundle's graphs into ``folder``, under their names, reading float32 (batch, 3, size, size).

    Each gives the scores of the bundle's own on computed pictures, or nothing is written.

    Raises:
        ParityError: one does not.
        BundleError: a graph does not begin as this package's do.
    """
    with replace_folder(folder) as temporary:
        for precision, graph in bundle.graphs.items():
            file = temporary / graph.file
            onnx.save(_planar(bundle, precision), file)
            _compare(bundle, precision, file)
    return [folder / graph.file for graph in bundle.graphs.values()]


def _planar(bundle: Bundle, precision: str) -> onnx.ModelProto:
    graph, path = bundle.graphs[precision], bundle.graph(precision)
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if graph.input in node.input]
    if len(nodes) != 1 or nodes[0].op_type != "Cast":
        raise BundleError(
            f"{path}: does not begin with one Cast of its pixels", "export the checkpoint again"
        )
    at = list(model.graph.node).index(nodes[0])
    turned = helper.make_node(
        "Transpose", [graph.input], list(nodes[0].output), nodes[0].name, perm=[0, 2, 3, 1]
    )
    model.graph.node.remove(nodes[0])
    model.graph.node.insert(at, turned)
    size = bundle.input_size
    (own,) = [value for value in model.graph.input if value.name == graph.input]
    own.CopyFrom(helper.make_tensor_value_info(graph.input, TensorProto.FLOAT, ["batch", 3, size, size]))
    for entry in model.metadata_props:
        if entry.key == "grmp_edge.input":
            entry.value = f"{graph.input}: float32 (batch, 3, {size}, {size}), RGB, 0..255"
    onnx.checker.check_model(model, full_check=False)
    return model


def _compare(bundle: Bundle, precision: str, file: Path) -> None:
    graph = bundle.graphs[precision]
    images = check_pictures(ParityConfig().check_images, bundle.input_size)
    (scores,) = open_session(bundle.graph(precision)).run([graph.output], {graph.input: images})
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    (own,) = open_session(file).run([graph.output], {graph.input: planes})
    limit, worst = LIMITS["fp32"].worst or 0.0, float(np.abs(own - scores).max())
    if not worst <= limit:
        raise ParityError(
            f"the planar {precision} graph differs from the bundle's by {worst:.2g}, tolerance {limit:g}",
            "nothing of it was written; please report it with the checkpoint",
        )
