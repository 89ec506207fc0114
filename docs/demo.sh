#!/usr/bin/env bash
# The whole path on computer-made pictures: few-shot train -> export --fp16 -> score pictures and a clip.
set -euo pipefail
work=${1:?usage: demo.sh FOLDER}
rm -rf "$work"
run() { printf '\n$ grmp-edge %s\n' "$*"; grmp-edge "$@"; }

run data sample -o "$work/data"
# Short settings, to be done in minutes on two cores; the defaults are the paper's.
run train --data "$work/data/labels.csv" --labels 50 --max-photos 4 \
    --distortions gaussian_blur,white_noise,jpeg,darken --meta-epochs 1 --epochs 2 -o "$work/run"
run export "$work/run" --fp16 -o "$work/bundle"
run score "$work/bundle" "$work/data/clip.mp4" --every 6
run score "$work/bundle" "$work/data/samples" --csv "$work/scores.csv"

python - "$work/scores.csv" <<'PYTHON'
import csv, pathlib, sys
rows = csv.DictReader(open(sys.argv[1], newline="", encoding="utf-8"))
scores = {pathlib.Path(row["source"]).stem: float(row["value"]) for row in rows}
worse = 0
print("\nEach scene, clean and at the worst level of three distortions:")
for name, clean in scores.items():
    scene, kind = name.split("_", 1)
    if kind == "clean":
        others = {n.split("_", 1)[1]: v for n, v in scores.items() if n.startswith(scene + "_") and n != name}
        worse += sum(v < clean for v in others.values())
        listed = "  ".join(f"{kind} {value:.3f}" for kind, value in others.items())
        print(f"  {scene:8} clean {clean:.3f}  |  {listed}")
total = sum(not name.endswith("_clean") for name in scores)
print(f"{worse} of {total} distorted pictures score below their clean original")
sys.exit(worse < total)
PYTHON
printf 'next: label fifty of your own frames (a csv with the columns image,mos), then\n'
printf '  grmp-edge train --data LABELS.csv --labels 50 && grmp-edge export runs/grmp-edge --fp16 -o BUNDLE && grmp-edge score BUNDLE PICTURES\n'
