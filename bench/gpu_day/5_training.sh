# Training steps at BAGEL-7B's size: LoRA, QLoRA, and all weights of a narrower network; tokens/s, MFU, peak memory.
set -u
if [ "$DRY" = 1 ]; then
  exec "$PYTHON" "$BENCH/gpu_train.py" --config tiny --device cpu --how lora full --tokens 400 --steps 1 --json "$RESULT"
fi
exec "$PYTHON" "$BENCH/gpu_train.py" --json "$RESULT"
