# irg-mini's drawing trained by recipes/mini/gpu-draw.yaml for TRAIN_SECONDS, and how well it draws before and after.
#
# A short run times a step; the long one then has as many steps as there is time for. Needs the icons (irg data sprites).
# TRAIN_OPTIONS: more of irg train's. Leaves the weights in bfloat16, in parts to be joined by cat; the training's log; a
# sheet of images.
set -euo pipefail
cd "$BENCH/.."
kept=${RESULT%.result.json} work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$kept"
export OMP_NUM_THREADS=1 TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1  # Muon needs float32 on a GPU; its products may be TF32
seconds=${TRAIN_SECONDS:-290} rows_options=() options=()
if [ "$DRY" = 1 ]; then
  rows_options=(--sprites builtin)
  options=(--device cpu --tokens_per_pack 1024 --noise_copies 1)
fi

rows() {  # parent folder, crowded ones, others
  for kind in "crowded $2 911 --tags compound stacking" "others $3 921"; do
    set -- "$1" $kind
    "$PYTHON" -m irg data mini --out "$work/$1/$2" --rows "$3" --seed "$4" --repairs 0.3 --misplanned 0.5 \
      --processes "$(nproc)" --rows-per-shard 100 "${rows_options[@]}" "${@:5}"
  done
}
train() {  # parent folder of the rows, steps, options
  # shellcheck disable=SC2086  # TRAIN_OPTIONS are several words
  timeout --signal=INT $((seconds + 90)) "$PYTHON" -m irg train recipes/mini/gpu-draw.yaml --out "$work/$1/run" \
    --data "[$work/$1/crowded, $work/$1/others]" --steps "$2" --optimizer.cooldown "$2" \
    "${options[@]}" ${TRAIN_OPTIONS:-} "${@:3}"
}
measure() {  # model, where the table goes, options
  [ "$DRY" = 1 ] && echo "not measured" > "$2" && return
  "$PYTHON" -m irg_mini.measure.drawing --model "$1" --prompts 96 --batch-size 96 "${@:3}" > "$2"
}

if [ "$DRY" = 1 ]; then
  steps=1
  rows all 4 4
else
  rows few 400 400
  train few 60
  steps=$(tail -n 1 "$work/few/run/log.jsonl" | "$PYTHON" -c "
import json, sys
print(int($seconds / json.load(sys.stdin)['step_seconds']))")
  echo "$steps steps in $seconds s"
  rows all 20000 12000
fi
measure mini "$work/before" &
train all "$steps" || train all "$steps" --stop_after 1  # what was cut is written as it is
run=$work/all/run
cp "$run/log.jsonl" "$kept/"
"$PYTHON" -m irg model convert "$run/model" "$work/bfloat16" --dtype bfloat16
split --bytes=12M "$work/bfloat16/weights.safetensors" "$kept/weights.safetensors."
wait
measure "$run/model" "$work/after" --out "$work/images"
[ "$DRY" = 1 ] || cp "$work/images/sheet.png" "$kept/"
cat "$work/before" "$work/after"
"$PYTHON" - "$RESULT" "$work" <<'END'
import json, sys
from pathlib import Path

result, work = map(Path, sys.argv[1:])
log = [json.loads(line) for line in (work / "all/run/log.jsonl").read_text().splitlines()]
tables = {name: (work / name).read_text().splitlines() for name in ("before", "after")}
result.write_text(json.dumps({"first": log[0], "last": log[-1]} | tables))
END
