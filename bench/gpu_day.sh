#!/usr/bin/env bash
# What to run on a GPU first: bench/gpu_day.sh [--dry] [--out DIR] [STEP ...]
#
# Each step is a script in bench/gpu_day/ and has ten minutes. It leaves DIR/STEP.log, what it measured in
# DIR/STEP.result.json, and how it ended in DIR/STEP.json. A step that fails stops none of the others; a second run
# repeats only those that have not ended well. --dry: tiny models on the CPU, to try the kit itself.
set -u
bench=$(cd "$(dirname "$0")" && pwd)
dry=0 out=gpu-day steps=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry) dry=1 ;;
    --out) shift; out=${1:?--out needs a folder} ;;
    -*) echo "unknown option $1; there are --dry and --out DIR" >&2; exit 2 ;;
    *) [ -f "$bench/gpu_day/$1.sh" ] || { echo "no step $1; there are: $(cd "$bench/gpu_day" && ls | sed 's/\.sh$//' | tr '\n' ' ')" >&2; exit 2; }
       steps+=("$1") ;;
  esac
  shift
done
if [ ${#steps[@]} -eq 0 ]; then
  for file in "$bench"/gpu_day/*.sh; do name=${file##*/}; steps+=("${name%.sh}"); done
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
export DRY=$dry PYTHON=${PYTHON:-python} BENCH=$bench PYTHONPATH="$bench/../src:$bench${PYTHONPATH:+:$PYTHONPATH}"
failed=0
for step in "${steps[@]}"; do
  if grep -qs '"exit_code": 0,' "$out/$step.json"; then
    echo "== $step: done before"
    continue
  fi
  echo "== $step"
  started=$(date +%s)
  RESULT="$out/$step.result.json" timeout "${STEP_SECONDS:-600}" bash "$bench/gpu_day/$step.sh" 2>&1 | tee "$out/$step.log"
  code=${PIPESTATUS[0]}
  printf '{"step": "%s", "exit_code": %d, "seconds": %d, "dry": %d}\n' "$step" "$code" $(($(date +%s) - started)) "$dry" \
    > "$out/$step.json.tmp" && mv "$out/$step.json.tmp" "$out/$step.json"
  [ "$code" -eq 0 ] || { echo "== $step failed with $code"; failed=1; }
done
exit $failed
