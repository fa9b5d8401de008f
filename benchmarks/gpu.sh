#!/usr/bin/env bash
# Speed and agreement on a GPU, within ten minutes. Usage: bash benchmarks/gpu.sh [OUT.json]
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="src:benchmarks${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" benchmarks/gpu.py "${1:-runs/gpu.json}" "${@:2}"
