#!/usr/bin/env bash
# Builds llama.cpp's llama-server and llama-bench, for `sgl-mlx bench suite --peer llama.cpp`.
#
#   benchmarks/peers/build_llama_cpp.sh [FOLDER]
#
# FOLDER (default: ~/.cache/sgl-mlx/llama.cpp, where the suite looks) receives both programs. The
# source is the copy of llama.cpp inside the source distribution of llama-cpp-python, which any
# package index has; nothing is compiled but these two. Needs cmake, a C++ compiler and python3
# with pip. Takes about eight minutes on two cores; a second run finds the result and stops.
set -euo pipefail

release=0.3.36 # of llama-cpp-python
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/sgl-mlx/llama.cpp}
done_mark=$folder/built-from-$release

if [ -e "$done_mark" ]; then
  echo "$folder/llama-server is built already; remove $done_mark to build it again"
  exit 0
fi
for tool in cmake c++ python3 tar; do
  command -v "$tool" >/dev/null || { echo "missing: $tool (Debian: apt-get install cmake g++ python3)" >&2; exit 1; }
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "fetching the source of llama-cpp-python $release ..."
# A source distribution is asked for its metadata before it is kept; that takes its build backend.
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --disable-pip-version-check --quiet download --no-deps \
  --no-binary llama-cpp-python --dest "$work" "llama-cpp-python==$release"
tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work"
source=$(echo "$work"/llama_cpp_python-*/vendor/llama.cpp)

options=(
  -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF
  -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF # no downloads of its own
  -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF
)
if [ -r /proc/cpuinfo ] && grep -qw amx_tile /proc/cpuinfo; then
  # This release crashes in its AMX path with Q4_1 weights: everything that this processor has but AMX.
  options+=(-DGGML_NATIVE=OFF)
  for pair in avx:AVX avx2:AVX2 fma:FMA f16c:F16C bmi2:BMI2 avx_vnni:AVX_VNNI avx512f:AVX512 \
    avx512vbmi:AVX512_VBMI avx512_vnni:AVX512_VNNI avx512_bf16:AVX512_BF16; do
    if grep -qw "${pair%%:*}" /proc/cpuinfo; then options+=("-DGGML_${pair##*:}=ON"); fi
  done
fi

echo "building llama-server and llama-bench ..."
log=$work/build.log
{ cmake -S "$source" -B "$work/build" "${options[@]}" &&
  cmake --build "$work/build" --target llama-server llama-bench --parallel "${JOBS:-$(getconf _NPROCESSORS_ONLN)}"
} >"$log" 2>&1 || { tail -n 30 "$log" >&2; exit 1; }

mkdir -p "$folder"
cp "$work"/build/bin/llama-server "$work"/build/bin/llama-bench "$folder/"
touch "$done_mark"
echo "built $folder/llama-server"
