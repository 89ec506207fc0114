"""How much memory an export takes, against the size of the backbone's weights.

    python tests/field/export_memory.py [--backbone ViT-L-14] [--from-file] [--fp16] [--int8] [--json]

The weights are random; with --from-file they lie in a safetensors file, as downloaded ones do, else they are
drawn anew. The export is a user's command in a process of its own, whose largest resident size the kernel
tells. The bound: three times the weights. Exit code 1 where it is not held, or the export fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

BOUND = 3.0


def make_checkpoint(name: str, folder: Path, from_file: bool) -> int:
    """Write an untrained checkpoint of a backbone; returns the bytes of the backbone's weights in float32.

    Args:
        name: of the backbone.
        folder: of the checkpoint.
        from_file: whether the weights go into it too.
    """
    from safetensors.torch import save_model

    from grmp_edge.train.network.backbone import BackboneConfig, load_backbone
    from grmp_edge.train.network.model import GrmpIqa
    from grmp_edge.train.network.settings import PromptConfig
    from grmp_edge.train.session.checkpoint import CheckpointWriter, State, backbone_settings

    config, prompts = BackboneConfig(name, "random"), PromptConfig()
    backbone = load_backbone(config)
    folder.mkdir(parents=True)
    if from_file:
        save_model(backbone.clip, str(folder / "backbone.safetensors"))
        backbone = replace(backbone, pretrained="backbone.safetensors")
    model = GrmpIqa(backbone, prompts)
    settings = {"backbone": backbone_settings(backbone, config), "prompts": asdict(prompts)}
    weights = {key: value.detach() for key, value in model.prompt_parameters()}
    CheckpointWriter(folder, settings).save(State(weights, {}, {"complete": True}))
    return sum(value.numel() * 4 for value in backbone.clip.parameters())


def export(checkpoint: Path, bundle: Path, options: list[str]) -> tuple[int, int]:
    """Run the command: (exit code, largest resident size in bytes)."""
    command = [sys.executable, "-m", "grmp_edge", "export", str(checkpoint), "-o", str(bundle), *options]
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_maxrss * 1024


def main() -> int:
    """Parse, measure, print; returns the exit code."""
    parser = argparse.ArgumentParser(description="memory of an export against the backbone's weights")
    parser.add_argument("--backbone", default="ViT-L-14", help="any ViT of open_clip")
    parser.add_argument("--from-file", action="store_true", help="weights in a file, as downloaded ones")
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    options = [f"--{name}" for name in ("fp16", "int8") if getattr(given, name)]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        # In a process of its own: what is measured must not share the maker's pages.
        made = subprocess.run(
            [sys.executable, __file__, "--make", given.backbone, f"{folder}/run", str(int(given.from_file))],
            stdout=subprocess.PIPE, check=True, text=True,
        )  # fmt: skip
        weights = int(made.stdout.split()[-1])
        began = time.monotonic()
        code, peak = export(Path(folder, "run"), Path(folder, "bundle"), options)
        seconds = time.monotonic() - began
    if code:
        print(f"the export ended with exit code {code}", file=sys.stderr)
        return 1
    ratio = peak / weights
    if given.json:
        found = {"weights_bytes": weights, "peak_bytes": peak, "ratio": ratio, "seconds": seconds}
        print(json.dumps({**vars(given), **found}))
    else:
        words = " ".join([given.backbone, *options, *(["from a file"] if given.from_file else [])])
        verdict = "holds" if ratio < BOUND else "DOES NOT HOLD"
        print(f"{words}: weights {weights / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB = {ratio:.2f}x, "
              f"{seconds:.0f} s; below {BOUND:g}x {verdict}")  # fmt: skip
    return int(ratio >= BOUND)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        print(make_checkpoint(sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "1"))
        sys.exit(0)
    sys.exit(main())
