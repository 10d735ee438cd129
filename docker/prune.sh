#!/bin/sh
# prune PREFIX: take away what packages bring along that no image needs.
set -eu
cd "$1"/lib/python3*/site-packages
rm -rf torch/test torch/include torch/share pyarrow/include pyarrow/src
find torch/bin -type f ! -name torch_shm_manager -delete
find . -type d -name tests ! -path './torch/*' -prune -exec rm -rf {} +
rm -rf pip pip-*.dist-info setuptools setuptools-*.dist-info "$1"/bin/pip* "$1"/bin/uv "$1"/bin/uvx
