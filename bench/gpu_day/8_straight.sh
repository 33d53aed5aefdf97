# The loop at BAGEL-7B's size, 1024 x 1024, in the engine and the reference's way of running it: seconds by stage, memory.
set -u
if [ "$DRY" = 1 ]; then
  exec "$PYTHON" "$BENCH/gpu_straight.py" --config tiny --device cpu --dtype float32 --size 32 --num-timesteps 3 \
    --thinking-tokens 3 --repeats 1 --json "$RESULT"
fi
exec "$PYTHON" "$BENCH/gpu_straight.py" --json "$RESULT"
