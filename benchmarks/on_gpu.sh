#!/usr/bin/env bash
# Everything that wants a GPU, on a bare machine that has one and no network, in under 9 minutes:
#
#     benchmarks/on_gpu.sh [WHEELS]
#
# WHEELS (default: wheels, in the repository) holds wheels of all dependencies, made where there is a network by
#     python -m pip download --dest wheels --constraint constraints.txt --group dev "setuptools>=77" wheel .
# Without that folder the environment of PYTHON (default: python3) is used as it is. What was printed, and a line of
# JSON for each benchmark, lie in OUT (default: gpu_results). A step that fails or takes too long does not stop the
# others; the exit code is then 1.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

wheels=${1:-wheels}
out=${OUT:-gpu_results}
python=${PYTHON:-python3}
mkdir -p "$out"
failed=0

step() { # step NAME SECONDS COMMAND...: its output goes to OUT/NAME.txt and to the screen
    local name=$1 limit_s=$2 began=$SECONDS code
    shift 2
    echo "== $name (at most $limit_s s)"
    timeout "$limit_s" "$@" 2>&1 | tee "$out/$name.txt"
    code=${PIPESTATUS[0]}
    echo "== $name: exit code $code after $((SECONDS - began)) s" | tee -a "$out/$name.txt"
    [ "$code" -eq 0 ] || failed=1
}

if [ -d "$wheels" ]; then
    environment=$(mktemp -d)
    trap 'rm -rf "$environment"' EXIT
    "$python" -m venv "$environment" || exit 1
    python=$environment/bin/python
    step install 150 "$python" -m pip install --quiet --no-index --find-links "$wheels" --constraint constraints.txt \
        pytest hypothesis setuptools wheel .
fi
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1

step machine 30 "$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name(), torch.cuda.mem_get_info())'
mapfile -t tests < <(grep -l "mark\.gpu" tests/*.py)
step tests 120 "$python" -m pytest -q -p no:cacheprovider -m gpu "${tests[@]}"
step bench_gpu 240 "$python" -m benchmarks.bench_gpu --device cuda
for name in "$out"/bench_*.txt; do
    grep '^{"benchmark"' "$name" >"${name%.txt}.json" || true
done
exit "$failed"
