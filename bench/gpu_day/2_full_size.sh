# Direct, think and the loop at BAGEL-7B's size, 1024 x 1024, by stage and memory mode, beside the roofline.
set -u
if [ "$DRY" = 1 ]; then
  exec "$PYTHON" "$BENCH/gpu_7b.py" --config tiny --device cpu --dtype float32 --size 32 --num-timesteps 3 \
    --thinking-tokens 3 --repeats 1 --modes irg --memory-modes bf16 --json "$RESULT"
fi
exec "$PYTHON" "$BENCH/gpu_7b.py" --memory-modes bf16 int8 int4 fp8 offload --repeats 1 --json "$RESULT"
