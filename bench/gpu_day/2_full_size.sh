# Direct, think and the loop at BAGEL-7B's size in bfloat16, 1024 x 1024, by stage, beside the roofline; the loop compiled.
set -u
if [ "$DRY" = 1 ]; then
  exec "$PYTHON" "$BENCH/gpu_7b.py" --config tiny --device cpu --dtype float32 --size 32 --num-timesteps 3 \
    --thinking-tokens 3 --repeats 1 --modes irg --memory-modes bf16 --json "$RESULT"
fi
"$PYTHON" "$BENCH/gpu_7b.py" --memory-modes bf16 --repeats 1 --json "$RESULT" || exit
exec "$PYTHON" "$BENCH/gpu_7b.py" --memory-modes bf16 --modes irg --repeats 1 --compile --json "${RESULT%.json}.compiled.json"
