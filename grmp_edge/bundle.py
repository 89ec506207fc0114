"""The bundle: one folder with ``bundle.json`` and the graphs it lists, the artifact that is deployed.

The format is specified in docs/bundle.md. Reading needs only the standard library.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

from grmp_edge.default_bundle import MANIFEST, is_checkpoint, resolve_bundle
from grmp_edge.errors import BundleError, ImageError, first_line
from grmp_edge.files import as_typed, replace_folder, sha256_bytes, sha256_file
from grmp_edge.onnx_wire import external_files, has_control_flow
from grmp_edge.parity import ParityReport, checked_parity
from grmp_edge.preprocess import NORMALIZATIONS, Normalization, Preprocess
from grmp_edge.score import Interval, MosScale
from grmp_edge.views import Aggregate

__all__ = [
    "MANIFEST",
    "GPU_PRECISIONS",
    "PRECISIONS",
    "SCHEMA_VERSION",
    "BackboneReport",
    "Bundle",
    "DataFile",
    "Graph",
    "refuse_other",
    "write_bundle",
]

# The newest version that is read; a bundle is written as the oldest that will do. 1: no data files. 2: with
# them, which a reader of 1 would leave behind in a copy and whose damage it would not notice. 3: logits, and
# several views of a picture, of which older readers would score the whole alone.
SCHEMA_VERSION = 3
PRECISIONS = ("fp32", "fp16", "int8", "int8-fp16", "fp8")
# Half and eight bits at once: a CPU can compute them, for the gate, but never fast.
GPU_PRECISIONS = ("int8-fp16", "fp8")
_MEANING = (
    "probability that the picture matches 'high quality' rather than 'low quality'; higher is better; "
    "input is uint8 NHWC RGB, batch free, already squashed and cropped; casting, normalising and "
    "transposing are in the graph"
)


class BackboneReport(TypedDict, total=False):
    """The CLIP a bundle was made from, and its image tower."""

    name: str  # open_clip's, or that of the embedded backbone
    digest: str  # SHA-256 of its tensors before training
    quick_gelu: bool
    image_size: int  # pixels a side
    patch: int  # pixels a side
    width: int  # channels of a token
    blocks: int
    heads: int
    visual_prompts: int  # of each block


@dataclass(frozen=True)
class Graph:
    """One ONNX file of a bundle."""

    file: str  # name inside the bundle
    sha256: str
    bytes: int
    opset: int
    input: str = "images"  # uint8 (batch, size, size, 3)
    output: str = "scores"  # float32 (batch,)
    # float32 (batch, 1 + causes): the score's logit, then the causes'. Empty: the graph gives scores alone.
    logits: str = ""


@dataclass(frozen=True)
class DataFile:
    """A file that holds weights of graphs (ONNX external data); several graphs may share it."""

    sha256: str
    bytes: int
    graphs: tuple[str, ...]  # the precisions whose graphs read it


@dataclass(frozen=True)
class Bundle:
    """A read and checked bundle.

    ``parity`` is the gate's report and ``provenance`` tells how the model was made; both are plain JSON.
    """

    path: Path
    id: str
    backbone: BackboneReport
    preprocess: Preprocess
    normalization: Normalization
    mos: MosScale | None
    graphs: Mapping[str, Graph]  # by precision, of PRECISIONS
    parity: ParityReport = field(default_factory=ParityReport)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = 1
    files: Mapping[str, DataFile] = field(default_factory=dict)  # by name inside the bundle
    aggregate: Aggregate = field(default_factory=Aggregate)  # of the logits of a picture's views
    causes: tuple[str, ...] = ()  # the columns of the graphs' logits behind the first
    interval: Interval | None = None  # how sure its scores are, where it was calibrated

    @classmethod
    def load(cls, path: str | Path, verify: bool = True) -> Bundle:
        """Read a bundle (``default``: the one that ships); with ``verify`` every file is compared with its
        recorded SHA-256.

        Raises:
            BundleError: it is missing, damaged, or of a newer schema; the message names the file.
        """
        bundle = cls.read_manifest(path, verify)
        for graph in bundle.graphs.values():
            bundle._check(graph.file, graph, verify)
        for name, file in bundle.files.items():
            bundle._check(name, file, verify)
        for precision in bundle.graphs if verify else ():
            bundle._check_references(precision)
        return bundle

    @classmethod
    def read_manifest(cls, path: str | Path, verify: bool = True) -> Bundle:
        """What a bundle's manifest says; the files that it lists are neither needed nor checked.

        Raises:
            BundleError: as for :meth:`load`.
        """
        folder = resolve_bundle(path)
        manifest = folder / MANIFEST
        if not folder.exists():
            raise BundleError(
                f"{folder}: no such bundle", "make one with: grmp-edge export CHECKPOINT -o BUNDLE"
            )
        if not folder.is_dir():
            raise BundleError(f"{folder}: a bundle is a folder", f"give the folder with {MANIFEST} in it")
        if is_checkpoint(folder) and not manifest.is_file():
            target = folder.absolute().with_suffix(".bundle").name
            raise BundleError(
                f"{folder}: a checkpoint, not a bundle",
                f"make one with: grmp-edge export {as_typed(folder)} -o {as_typed(target)}",
            )
        if not manifest.is_file():
            raise BundleError(
                f"{folder}: not a bundle (it has no {MANIFEST})", "make one with: grmp-edge export CHECKPOINT"
            )
        try:
            if manifest.stat().st_size > _LARGEST:
                raise BundleError(
                    f"{manifest}: larger than {_LARGEST >> 20} MB, which no manifest is", _AGAIN
                )
            data = json.loads(manifest.read_bytes(), parse_constant=_no_number)
            version = int(data["schema_version"])
        except OSError as error:
            raise BundleError(
                f"{manifest}: cannot be read ({error.strerror})", "check its permissions"
            ) from None
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise BundleError(f"{manifest}: damaged (not a bundle's manifest)", _AGAIN) from None
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"{manifest}: schema version {version} is newer than this grmp-edge reads ({SCHEMA_VERSION})",
                "update grmp-edge, or export the checkpoint again with this version",
            )
        if verify and data.get("manifest_sha256") != manifest_digest(data):
            raise BundleError(f"{manifest}: damaged (it does not match its own hash)", _AGAIN)
        try:
            return cls._from_manifest(folder, data)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, ImageError) as error:
            reason = first_line(error, 200)
            raise BundleError(f"{manifest}: damaged ({type(error).__name__}: {reason})", _AGAIN) from None

    @classmethod
    def _from_manifest(cls, folder: Path, data: Mapping[str, Any]) -> Bundle:
        norm, pre, mos = data["normalization"], data["preprocess"], data.get("mos")
        known = {field.name for field in fields(Graph)}
        graphs = {
            name: Graph(**{key: value for key, value in graph.items() if key in known})
            for name, graph in data["graphs"].items()
        }
        for key, value in _MEANS.items():
            if pre.get(key, value) != value:
                raise ValueError(f"its preprocess has {key} {pre[key]!r}, which this version does not do")
        views, causes = data.get("views"), tuple(str(name) for name in data.get("causes", ()))
        if (views or causes) and not all(graph.logits for graph in graphs.values()):
            raise ValueError("it has views or causes, but a graph without logits")
        if views and views["rule"] != _VIEWS_RULE:
            raise ValueError(f"its views follow the rule {views['rule']!r}, which this version does not know")
        files = {
            name: DataFile(str(file["sha256"]), int(file["bytes"]), tuple(file["graphs"]))
            for name, file in data.get("files", {}).items()
        }
        for name in (*(graph.file for graph in graphs.values()), *files):
            if Path(name).name != name or name == MANIFEST:
                raise ValueError(f"file name {name!r} leaves the bundle")
        if not graphs:
            raise ValueError("it lists no graph")
        identity = data["id"]
        if not isinstance(identity, str) or not 0 < len(identity) <= _LONGEST:
            raise ValueError("its id is not a short text")
        if any(len(name) > _LONGEST for name in (*graphs, *files, *causes)) or len(causes) > _MOST_CAUSES:
            raise ValueError("it has a name that is too long, or too many causes")
        for key in ("resize", "crop"):
            if not isinstance(pre[key], int) or not 0 < pre[key] <= _LARGEST_SIDE:
                raise ValueError(f"its preprocess has {key} {str(pre[key])[:40]}, not 1 to {_LARGEST_SIDE}")
        return cls(
            path=folder,
            id=identity,
            backbone=data["backbone"],
            preprocess=Preprocess(pre["resize"], pre["crop"], int(views["native"]) if views else 0),
            normalization=NORMALIZATIONS.get(norm["name"])
            or Normalization(norm["name"], tuple(norm["mean"]), tuple(norm["std"])),
            mos=MosScale(mos["low"], mos["high"]) if mos else None,
            graphs=graphs,
            parity=checked_parity(data.get("parity", {})),
            provenance=data.get("provenance", {}),
            schema_version=data["schema_version"],
            files=files,
            aggregate=Aggregate(*(float(views["aggregate"][key]) for key in ("whole", "native", "shift")))
            if views
            else Aggregate(),
            causes=causes,
            interval=_interval(data.get("interval")),
        )

    def _check(self, name: str, listed: Graph | DataFile, verify: bool) -> None:
        file = self.path / name
        if not file.is_file():
            raise BundleError(f"{file}: missing, though {MANIFEST} lists it", _AGAIN)
        if file.stat().st_size != listed.bytes or (verify and sha256_file(file) != listed.sha256):
            raise BundleError(f"{file}: damaged (it does not match the hash in {MANIFEST})", _AGAIN)

    def _check_references(self, precision: str) -> None:
        """A graph may read only files that the manifest lists for it, or the hashes would prove nothing."""
        path = self.path / self.graphs[precision].file
        if has_control_flow(path):
            raise BundleError(
                f"{path}: has a Loop, an If or a Scan, which may run for ever and no exported graph has",
                _AGAIN,
            )
        for name in _external(path):
            if precision not in getattr(self.files.get(name), "graphs", ()):
                raise BundleError(
                    f"{path}: keeps weights in {name!r}, which {MANIFEST} does not list for it", _AGAIN
                )

    def graph(self, precision: str = "fp32") -> Path:
        """The path of the ONNX file of a precision: ``fp32``, ``fp16`` or ``int8``.

        Raises:
            BundleError: the bundle has none of that precision.
        """
        if precision not in self.graphs:
            flag = f" --{precision}" if precision != "fp32" else ""
            raise BundleError(
                f"{self.path}: has no {precision} graph, only {', '.join(self.graphs)}",
                f"export again with: grmp-edge export CHECKPOINT{flag}",
            )
        return self.path / self.graphs[precision].file

    def data_files(self, precision: str) -> list[Path]:
        """The paths of the data files that the graph of a precision reads; most graphs have none."""
        return [self.path / name for name, file in self.files.items() if precision in file.graphs]

    def graph_digest(self, precision: str) -> str:
        """SHA-256 that identifies a graph with its weights: of its file, or with those of its data."""
        own = self.graphs[precision].sha256
        others = [file.sha256 for file in self.files.values() if precision in file.graphs]
        return sha256_bytes("".join([own, *others]).encode()) if others else own

    @property
    def file_names(self) -> list[str]:
        """The names of all its files, the manifest's first."""
        return [MANIFEST, *dict.fromkeys([*(graph.file for graph in self.graphs.values()), *self.files])]

    @property
    def input_size(self) -> int:
        """Side of the square the graph reads, in pixels."""
        return self.preprocess.crop


def _interval(found: Mapping[str, Any] | None) -> Interval | None:
    if not found:
        return None
    return Interval(float(found["half_width"]), float(found["coverage"]), int(found["labels"]))


_AGAIN = "copy or export the bundle again"

# Far beyond what any bundle has, and harmless: bytes of a manifest, characters of a name, pixels a side.
_LARGEST, _LONGEST, _LARGEST_SIDE, _MOST_CAUSES = 4 << 20, 200, 4096, 100


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


# What every bundle's preprocess says beside its sizes; another value would be silently ignored.
_MEANS = {
    "interpolation": "opencv-bicubic",
    "keep_aspect_ratio": False,
    "color": "RGB",
    "layout": "NHWC",
    "dtype": "uint8",
}
# Which crops, and how the views' logits become one: see grmp_edge.views.
_VIEWS_RULE = "whole-and-spread-1"


def _external(path: Path) -> list[str]:
    try:
        return external_files(path)
    except ValueError as error:
        raise BundleError(f"{path}: not an ONNX file ({error})", _AGAIN) from None


def manifest_digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's canonical JSON (sorted keys, no spaces, ASCII) without ``manifest_sha256``."""
    content = {key: value for key, value in data.items() if key != "manifest_sha256"}
    return sha256_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii"))


def refuse_other(path: Path) -> None:
    """Raise BundleError if ``path`` is something other than a bundle or an empty folder."""
    if path.exists() and not (path / MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise BundleError(f"{path}: exists and is not a bundle", "choose another output with -o")


def write_bundle(
    path: Path,
    graphs: Mapping[str, tuple[Path, int]],
    *,
    backbone: BackboneReport,
    preprocess: Preprocess,
    normalization: Normalization,
    mos: MosScale | None,
    parity: ParityReport,
    provenance: Mapping[str, Any],
    files: Sequence[Path] = (),
    aggregate: Aggregate | None = None,
    causes: Sequence[str] = (),
    logits: str = "",
    interval: Interval | None = None,
) -> Bundle:
    """Write a bundle in one step: it replaces an older one as a whole, or not at all.

    Args:
        path: the folder to make.
        graphs: by precision, an ONNX file (moved into the bundle under its name) and its opset.
        backbone, preprocess, normalization, mos, parity, provenance: as in :class:`Bundle`.
        files: data files of the graphs, named as the graphs name them; moved too. The graphs themselves tell
            which of them reads which file.
        aggregate, causes, interval: as in :class:`Bundle`.
        logits: the graphs' output of that name; see :class:`Graph`.

    Raises:
        BundleError: ``path`` is something other than a bundle and is not overwritten; or a graph keeps
            weights in a file that is not among ``files``.
        ValueError: no graph reads one of ``files``, or there are views or causes without ``logits``.
    """
    refuse_other(path)
    reads = {precision: _external(file) for precision, (file, _) in graphs.items()}
    for precision, names in reads.items():
        for name in set(names) - {file.name for file in files}:
            raise BundleError(
                f"{graphs[precision][0]}: keeps weights in {name!r}, which is not given", _AGAIN
            )
    unread = {file.name for file in files} - {name for names in reads.values() for name in names}
    if unread:
        raise ValueError(f"no graph keeps weights in {sorted(unread)[0]}")
    aggregate = aggregate or Aggregate()
    views = {"native": preprocess.native, "rule": _VIEWS_RULE, "aggregate": aggregate.to_json()}
    has_views = preprocess.native > 0 or aggregate != Aggregate()
    if (has_views or causes) and not logits:
        raise ValueError("views and causes are read from logits, which the graphs do not give")
    with replace_folder(path) as folder:
        listed, shared = {}, {}
        for precision, (file, opset) in graphs.items():
            target = folder / file.name
            shutil.move(file, target)
            graph = Graph(file.name, sha256_file(target), target.stat().st_size, opset, logits=logits)
            listed[precision] = {
                key: value for key, value in asdict(graph).items() if key != "logits" or logits
            }
        for file in files:
            target = folder / file.name
            shutil.move(file, target)
            readers = tuple(precision for precision in graphs if file.name in reads[precision])
            shared[file.name] = asdict(DataFile(sha256_file(target), target.stat().st_size, readers))
        hashes = [str(entry["sha256"]) for entry in (*listed.values(), *shared.values())]
        data: dict[str, Any] = {
            "schema_version": 3 if logits else 2 if shared else 1,
            "id": sha256_bytes("".join(hashes).encode())[:12],
            "backbone": dict(backbone),
            "preprocess": {
                "resize": preprocess.resize,
                "crop": preprocess.crop,
                **_MEANS,
            },
            **({"views": views} if has_views else {}),
            **({"causes": list(causes)} if causes else {}),
            "normalization": {**asdict(normalization), "in_graph": True},
            "score": {"low": 0.0, "high": 1.0, "meaning": _MEANING},
            "mos": asdict(mos) if mos else None,
            **({"interval": asdict(interval)} if interval else {}),
            "graphs": listed,
            **({"files": shared} if shared else {}),
            "parity": dict(parity),
            "provenance": dict(provenance),
        }
        # Through JSON once, so that the digest is of what a reader parses. A nan (the SRCC of a constant)
        # becomes null: JSON has no word for it, and other parsers reject it.
        data = json.loads(json.dumps(data), parse_constant=lambda _: None)
        data["manifest_sha256"] = manifest_digest(data)
        (folder / MANIFEST).write_text(json.dumps(data, indent=2) + "\n", encoding="ascii")
    return Bundle.load(path)
