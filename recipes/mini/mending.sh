#!/usr/bin/env bash
# Two ways to teach that a wrong plan is mended, on from what `build.sh` leaves (docs/mini.md, "Mending a wrong plan"; neither
# is in what is bundled). About an hour and a half on two CPU cores; data and runs that are there are kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=build/mini

drafts() {  # r for new plans, else nothing; then which model, where to, and how many
  local replan=${1:+--replan}
  irg data drafts $replan --detector $here/label-2 --batch 50 --flawed-copies 2 --model "$2" --out "$here/$3$1" --rows "$4" "${@:5}"
}
data() {
  for n in 1 2; do
    drafts "$1" $here/final-4 plans-6$n 6000 --seed 60$n --rows-per-shard 600 --generator world --tags compound stacking
    drafts "$1" $here/final-4 drafts-6$n 1200 --seed 61$n --rows-per-shard 600 --num-timesteps 5 --tags compound
  done
}
data ""
irg data mini --out $here/slips-6 --rows 16000 --repairs 1.0 --near-misses 0.6 --misplanned 0.5 --seed 206 --tags compound stacking position
irg train recipes/mini/mend.yaml

data r
for n in 1 2; do
  drafts r $here/longer/model plans-$n 5100 --seed 50$n --rows-per-shard 300 --generator world --tags compound stacking
done
drafts r $here/longer/model drafts-5 900 --seed 503 --rows-per-shard 300 --num-timesteps 8 --tags compound
drafts r $here/longer/model drafts-5b 900 --seed 504 --rows-per-shard 300 --num-timesteps 8 --tags compound
irg data mini --out $here/slips-7 --rows 16000 --repairs 1.0 --near-misses 0.6 --misplanned 0.5 --replan --seed 206 --tags compound stacking position
irg data mini --out $here/repairs-7 --rows 8000 --repairs 1.0 --misplanned 0.7 --replan --seed 205 \
  --tags compound stacking color_attr counting position two_object
irg train recipes/mini/replan.yaml

for run in mend replan; do
  cp src/irg/assets/mini/irg.json $here/$run/model/
  irg bench mini --model $here/$run/model --detector $here/eval-2 --prompt-set crowded --prompts 300 --modes always redraw again \
    --out $here/bench-$run
done
