#!/usr/bin/env bash
# Builds irg-mini from nothing into build/mini, on a CPU. Every step resumes or is skipped when its result is there.
# Version 1 took about five hours on two AVX2 cores, version 2 about two more on two with bfloat16 units, version 3 an hour
# and a half, version 4 three hours, version 5 half an hour, version 6 three hours. Needs npm once, for the icons.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=build/mini
mkdir -p "$here"
step() { [ -e "$1" ] || { echo "== $1"; shift; "$@"; }; }

irg data sprites
step $here/ae/ae.safetensors python -m irg_mini.perception.autoencoder --out $here/ae --minutes 15
step $here/vit-1/model.safetensors python -m irg_mini.perception.vit --out $here/vit-1 --minutes 8 --batch 64 --autoencoder $here/ae
step $here/vit/model.safetensors python -m irg_mini.perception.vit --out $here/vit --minutes 13 --batch 64 --pool 6000 \
  --seed 5 --augmented-share 0.5 --init $here/vit-1/model.safetensors --autoencoder $here/ae
step $here/label/model.safetensors python -m irg_mini.perception.detector --out $here/label --variant label --seed 1 \
  --minutes 15 --autoencoder $here/ae
irg data mini --vocab core --size 96 --out $here/images --rows 40000 --seed 1
irg data mini --vocab core --size 96 --out $here/repairs --rows 10000 --repairs 1.0 --seed 2
step $here/start/weights.safetensors python -m irg_mini.start.base_model --autoencoder $here/ae --vit $here/vit --out $here/start
irg train recipes/mini/1-draw.yaml
irg train recipes/mini/2-all-modes.yaml
irg train recipes/mini/3-draw-more.yaml
irg train recipes/mini/4-finish.yaml
irg train recipes/mini/5-colors.yaml
irg data drafts --vocab core --model $here/colors/model --detector $here/label --out $here/drafts --rows 2560 --seed 7 --batch 64 \
  --num-timesteps 15 --flawed-copies 2
irg data mini --vocab core --size 96 --out $here/few-repairs --rows 2000 --repairs 1.0 --seed 62
irg train recipes/mini/6-own-drafts.yaml
irg train recipes/mini/7-finish.yaml

# ---- version 2: larger images, more nouns, reflections that say what they see
for detector in "label 11" "eval 29"; do
  set -- $detector
  step $here/$1-2/model.safetensors python -m irg_mini.perception.detector --out $here/$1-2 --variant $1 --seed $2 --minutes 13 \
    --vocab geneval --autoencoder $here/ae
done
step $here/vit-2/model.safetensors python -m irg_mini.perception.vit --out $here/vit-2 --minutes 20 --batch 64 --seed 22 \
  --vocab geneval --init $here/vit/model.safetensors --autoencoder $here/ae --muon-lr 0.012 --low-precision
irg data mini --out $here/images-2 --rows 40000 --seed 101
irg data mini --out $here/repairs-2 --rows 12000 --repairs 1.0 --seed 102
step $here/start-2/weights.safetensors python -m irg_mini.start.enlarge --model $here/final-2/model --out $here/start-2 \
  --size 128 --vocab geneval --words 2048
cp src/irg/assets/mini/irg.json $here/start-2/  # the settings that were measured to suit it; every run passes them on
irg train recipes/mini/8-larger.yaml
step $here/start-3/weights.safetensors python -m irg_mini.start.enlarge --model $here/larger/model --out $here/start-3 --vit $here/vit-2
irg train recipes/mini/9-all-modes.yaml
irg data drafts --model $here/modes-2/model --detector $here/label-2 --out $here/drafts-2 --rows 1600 --rows-per-shard 400 --seed 107 \
  --batch 50 --num-timesteps 11 --flawed-copies 2
irg data mini --out $here/few-repairs-2 --rows 2000 --repairs 1.0 --seed 102
irg train recipes/mini/10-finish.yaml

# ---- version 3: a reader that was trained far longer, and reflections that have to look
step $here/vit-3/model.safetensors python -m irg_mini.perception.vit --out $here/vit-3 --minutes 36 --batch 64 --seed 33 \
  --pool 12000 --refresh 6 --vocab geneval --init $here/vit-2/model.safetensors --autoencoder $here/ae --low-precision --threads 2 \
  --muon-lr 0.05 --adam-lr 0.003
irg data drafts --model $here/final-3/model --detector $here/label-2 --out $here/drafts-3 --rows 1400 --rows-per-shard 350 --seed 307 \
  --batch 50 --num-timesteps 8 --flawed-copies 2
step $here/start-4/weights.safetensors python -m irg_mini.start.enlarge --model $here/final-3/model --out $here/start-4 --vit $here/vit-3
irg train recipes/mini/11-look.yaml

# ---- version 4: a reader that is read, crowded prompts, and reflections on its own mistakes of planning and of drawing
irg data mini --out $here/images-3 --rows 8000 --seed 201 --tags compound stacking counting
irg data mini --out $here/repairs-3 --rows 8000 --repairs 1.0 --seed 202 --tags compound stacking counting
drafts="irg data drafts --detector $here/label-2 --rows-per-shard 300 --batch 50 --num-timesteps 8"
cp src/irg/assets/mini/irg.json $here/look/model/
$drafts --model $here/look/model --out $here/drafts-4 --rows 1200 --seed 407 --tags compound
$drafts --model $here/look/model --out $here/drafts-4b --rows 600 --seed 408 --tags compound counting position
step $here/start-5/weights.safetensors python -m irg_mini.start.enlarge --model $here/look/model --out $here/start-5 --vit $here/vit-3 \
  --images 6000
irg train recipes/mini/12-read.yaml
irg train recipes/mini/13-together.yaml
irg data mini --out $here/images-4 --rows 16000 --seed 203 --tags compound
irg data mini --out $here/repairs-4 --rows 8000 --repairs 1.0 --seed 204 --tags compound color_attr two_object
irg data mini --out $here/repairs-5 --rows 8000 --repairs 1.0 --misplanned 0.7 --seed 205 \
  --tags compound stacking color_attr counting position two_object
irg train recipes/mini/14-longer.yaml
cp src/irg/assets/mini/irg.json $here/longer/model/
for n in 1 2; do
  $drafts --model $here/longer/model --out $here/plans-$n --rows 5100 --seed 50$n --generator world --flawed-copies 2 --tags compound stacking
done
$drafts --model $here/longer/model --out $here/drafts-5 --rows 900 --seed 503 --flawed-copies 2 --tags compound
$drafts --model $here/longer/model --out $here/drafts-5b --rows 900 --seed 504 --flawed-copies 2 --tags compound
irg train recipes/mini/15-own-mistakes.yaml
step $here/final-4/irg.json python -m irg.learning.averaging --models $here/longer/model $here/own-mistakes/model \
  --share 0.35 --out $here/final-4
irg bench mini --model $here/final-4 --detector $here/eval-2 --modes always direct redraw --out $here/bench-4

# ---- version 5: a planner that learned by reward, a decoder that knows what the model draws
irg train recipes/mini/rl-plan.yaml --model $here/final-4 --out $here/plan
step $here/decoder/ae.safetensors python -m irg_mini.perception.decoder --model $here/plan/model --out $here/decoder --minutes 14
step $here/irg-mini/weights.safetensors irg model convert $here/plan/model $here/irg-mini --dtype bfloat16
cp $here/decoder/ae.safetensors $here/irg-mini/
cp src/irg/assets/mini/irg.json $here/irg-mini/

# ---- version 6: it checks itself, and plans by reward beside
irg data checks --model $here/irg-mini --out $here/check --scenes 56000 --prompts 1800
irg data checks --model $here/irg-mini --out $here/check-all --scenes 4000 --prompts 1000 --forms all --seed 1
irg data mini --out $here/check/repairs --rows 3000 --repairs 0.6 --misplanned 0.3 --seed 904
$drafts --model $here/irg-mini --out $here/check/drafts --rows 1500 --seed 903 \
  --tags compound stacking position counting color_attr
irg train recipes/mini/check.yaml --model $here/irg-mini --out $here/checked
irg train recipes/mini/rl-check.yaml --model $here/checked/model --out $here/checked-plan
irg data mini --out $here/colors-1 --rows 3000 --seed 977 --tags colors color_attr counting two_object position single_object
irg data mini --out $here/colors-2 --rows 4000 --seed 978 --tags colors color_attr
irg train recipes/mini/draw-colors.yaml --model $here/checked-plan/model --out $here/colored
step $here/irg-mini-6/weights.safetensors irg model convert $here/colored/model $here/irg-mini-6 --dtype bfloat16  # what is bundled
