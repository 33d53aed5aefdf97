#!/usr/bin/env bash
# On from what `build.sh` leaves, towards irg-mini v4: a reader that is read, and crowded prompts. Not bundled yet; what
# it brought so far and what it lacks is told in docs/mini.md. Resumes like build.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=build/mini
step() { [ -e "$1" ] || { echo "== $1"; shift; "$@"; }; }

irg data mini --out $here/pictures-3 --rows 8000 --seed 201 --tags compound stacking counting
irg data mini --out $here/repairs-3 --rows 8000 --repairs 1.0 --seed 202 --tags compound stacking counting
drafts="irg data drafts --model $here/look/model --judge $here/judge-2 --rows-per-shard 300 --batch 50 --num-timesteps 8"
$drafts --out $here/drafts-4 --rows 1200 --seed 407 --tags compound
$drafts --out $here/drafts-4b --rows 600 --seed 408 --tags compound counting position
cp src/irg/assets/mini/irg.json $here/look/model/
step $here/start-5/weights.safetensors python -m irg.learning.enlarge --model $here/look/model --out $here/start-5 --vit $here/vit-3 \
  --pictures 6000
irg train recipes/mini/12-read.yaml
irg train recipes/mini/13-together.yaml
irg data mini --out $here/pictures-4 --rows 16000 --seed 203 --tags compound
irg data mini --out $here/repairs-4 --rows 8000 --repairs 1.0 --seed 204 --tags compound color_attr two_object
irg data mini --out $here/repairs-5 --rows 8000 --repairs 1.0 --misplanned 0.7 --seed 205 \
  --tags compound stacking color_attr counting position two_object
irg train recipes/mini/14-longer.yaml
irg bench mini --model $here/longer/model --referee $here/referee-2 --modes always direct redraw --out $here/bench-4
step $here/irg-mini-4/weights.safetensors irg model convert $here/longer/model $here/irg-mini-4 --dtype bfloat16
