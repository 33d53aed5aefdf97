#!/usr/bin/env bash
# What each part of the training is worth: runs of equal length from one start that plans and draws but never reflected, and
# the same prompts for each. On from what `build.sh` leaves; about 40 minutes on two CPU cores; resumes like it.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=build/mini
out=$here/ablations
step() { [ -e "$1" ] || { echo "== $1"; shift; "$@"; }; }

step $here/start-a/weights.safetensors python -m irg_mini.start.enlarge --model $here/larger/model --out $here/start-a --vit $here/vit-3 \
  --images 6000

run() {  # name, and how the run differs from ablations.yaml
  local name=$1
  shift
  step $out/$name/model/weights.safetensors irg train recipes/mini/ablations.yaml --out $out/$name "$@"
  cp src/irg/assets/mini/irg.json $out/$name/model/
}
full="--mixture.initial_thinking_understanding 0 --mixture.initial_thinking_generation 0 --mixture.improving_thinking_generation 0"
run one-stage
run no-own-drafts --data "[$here/images-2, $here/repairs-2]"
run full-modes-only $full
run direct-only $full --mixture.initial_full 0 --mixture.improving_full 0 --mixture.direct 1.0
run first-stage --steps 80 --optimizer.cooldown 40
run two-stages --model $out/first-stage/model --steps 40 --optimizer.cooldown 40 $full

for name in one-stage no-own-drafts full-modes-only two-stages direct-only; do
  modes="always direct"
  [ $name != direct-only ] || modes=direct
  irg bench mini --model $out/$name/model --detector $here/eval-2 --prompts 150 --modes $modes --out $out/bench-$name
done
