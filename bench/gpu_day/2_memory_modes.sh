# The loop at BAGEL-7B's size, 1024 x 1024, with quantized and offloaded weights.
set -u
if [ "$DRY" = 1 ]; then
  exec "$PYTHON" "$BENCH/gpu_7b.py" --config tiny --device cpu --dtype float32 --size 32 --num-timesteps 3 \
    --thinking-tokens 3 --repeats 1 --modes think --memory-modes fp8 offload --json "$RESULT"
fi
exec "$PYTHON" "$BENCH/gpu_7b.py" --memory-modes fp8 int8 int4 offload --modes irg --repeats 1 --json "$RESULT"
