#!/usr/bin/env bash
# Builds irg-mini from nothing into build/mini, on a CPU. Every step resumes or is skipped when its result is there.
# About five hours on two AVX2 cores. Needs npm once, for the icons.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=build/mini
mkdir -p "$here"
step() { [ -e "$1" ] || { echo "== $1"; shift; "$@"; }; }

irg data sprites
step $here/ae/ae.safetensors python -m irg.learning.autoencoding --out $here/ae --minutes 15
step $here/vit-1/model.safetensors python -m irg.learning.vit_pretraining --out $here/vit-1 --minutes 8 --batch 64 --autoencoder $here/ae
step $here/vit/model.safetensors python -m irg.learning.vit_pretraining --out $here/vit --minutes 13 --batch 64 --pool 6000 \
  --seed 5 --softened-share 0.5 --init $here/vit-1/model.safetensors --autoencoder $here/ae
step $here/judge/model.safetensors python -m irg.learning.detection --out $here/judge --variant judge --seed 1 \
  --minutes 15 --autoencoder $here/ae
irg data mini --out $here/pictures --rows 40000 --seed 1
irg data mini --out $here/repairs --rows 10000 --repairs 1.0 --seed 2
step $here/start/weights.safetensors python -m irg.learning.mini --autoencoder $here/ae --vit $here/vit --out $here/start
irg train recipes/mini/1-draw.yaml
irg train recipes/mini/2-all-modes.yaml
irg train recipes/mini/3-draw-more.yaml
irg train recipes/mini/4-finish.yaml
irg train recipes/mini/5-colours.yaml
irg data drafts --model $here/colours/model --judge $here/judge --out $here/drafts --rows 2560 --seed 7 --batch 64 \
  --num-timesteps 15 --flawed-copies 2
irg data mini --out $here/few-repairs --rows 2000 --repairs 1.0 --seed 62
irg train recipes/mini/6-own-drafts.yaml
irg train recipes/mini/7-finish.yaml
step $here/referee/model.safetensors python -m irg.learning.detection --out $here/referee --variant referee --seed 22 \
  --minutes 15 --autoencoder $here/ae
irg bench mini --model $here/final-2/model --referee $here/referee --out $here/bench
