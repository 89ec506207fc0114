#!/usr/bin/env bash
# The part without torch on arm64, emulated: Debian's Python, PyPI's own wheels, golden preprocessing, all graphs.
#
#     apt-get install qemu-user; dpkg --add-architecture arm64; apt-get update
#     bash tests/field/arm64.sh [FOLDER]
#
# qemu 7 shows the host's /proc/cpuinfo, which onnxruntime cannot read as an ARM processor's: it gets another.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "${1:-/tmp/arm64}" && cd "${1:-/tmp/arm64}"
mkdir -p debs sysroot/proc site
platforms=(--platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64)
python3 -m pip download -q -d wheels "${platforms[@]}" --python-version 3.11 --only-binary=:all: \
  numpy opencv-python-headless typer rich onnxruntime
for wheel in wheels/*.whl; do python3 -m zipfile -e "$wheel" site; done
(cd debs && apt-get download -q python3.11-minimal:arm64 libpython3.11-{minimal,stdlib}:arm64 libc6:arm64 zlib1g:arm64 \
  libexpat1:arm64 libgcc-s1:arm64 libstdc++6:arm64 libssl3:arm64 libffi8:arm64 libbz2-1.0:arm64 liblzma5:arm64)
for deb in debs/*.deb; do dpkg -x "$deb" sysroot; done
for cpu in 0 1; do
  printf 'processor\t: %s\nFeatures\t: fp asimd aes sha1 sha2 crc32 atomics fphp asimdhp asimdrdm asimddp\n' "$cpu"
  printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n'
done >sysroot/proc/cpuinfo
export PYTHONPATH=$root:$PWD/site XDG_CACHE_HOME=$PWD/cache QEMU_CPU=cortex-a76 OPENBLAS_NUM_THREADS=1
qemu-aarch64 -L sysroot sysroot/usr/bin/python3.11 -S "$root/tests/field/arm64.py"
