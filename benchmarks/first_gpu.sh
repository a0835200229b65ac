#!/bin/sh
# The first nine minutes on a machine with an NVIDIA GPU, of which the first half needs none.
#
#   benchmarks/first_gpu.sh prepare FOLDER    here: bundles with random weights, wheels, tests, in 60 MB
#   FOLDER/source/benchmarks/first_gpu.sh run FOLDER    there: needs a driver and Python, no internet
#
# PYTHON names the Python: to prepare one that has gft-edge[export], by default that of .venv; to run
# one that has PyTorch, where the machine has it. --help after either word shows the options.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
word=${1:-}
[ $# -eq 0 ] || shift
case $word in
prepare)
    python=$here/../.venv/bin/python
    [ -x "$python" ] || python=python3
    exec "${PYTHON:-$python}" "$here/first_gpu_prepare.py" "$@"
    ;;
run) exec "${PYTHON:-python3}" "$here/first_gpu.py" "$@" ;;
*)
    echo "usage: $0 prepare|run FOLDER [--help]" >&2
    exit 2
    ;;
esac
