#!/bin/sh
# Installs nenya and its pinned packages, whose hashes are checked, into /opt/nenya: install.sh cpu|cuda
set -eu
accelerator=$1
python -m venv /opt/nenya
sed -n '/^uv==/,/[^\\]$/p' constraints.txt > /tmp/uv.txt
/opt/nenya/bin/pip install --quiet --no-deps --require-hashes --only-binary :all: -r /tmp/uv.txt
install() { /opt/nenya/bin/uv pip install --no-config --python /opt/nenya/bin/python --compile-bytecode "$@"; }

case $accelerator in
cpu)
    # PyTorch's index holds the build for CPUs under the same version; its own hashes differ from those of PyPI's build.
    version=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)
    install --index-url https://download.pytorch.org/whl/cpu --no-deps "torch==$version+cpu"
    sed '/^torch==/,/[^\\]$/d' constraints.txt > /tmp/constraints.txt
    ;;
cuda)
    cat constraints.txt constraints-cuda.txt > /tmp/constraints.txt
    ;;
*)
    echo "ACCELERATOR is '$accelerator'; expected cpu or cuda" >&2
    exit 2
    ;;
esac
cat constraints-sdist.txt >> /tmp/constraints.txt
install -c /tmp/constraints.txt '/src[dask,onnx,portal,publish,search]'
/opt/nenya/bin/uv pip check --python /opt/nenya/bin/python
/opt/nenya/bin/nenya --help > /dev/null
