# How cost grows with requests, sizes, rounds and thoughts, on irg-mini's network.
set -u
if [ "$DRY" = 1 ]; then
  exec "$PYTHON" "$BENCH/growth.py" --config tiny --requests 1 --sizes 64 --rounds 1 --thoughts 5 --num-timesteps 2 --json "$RESULT"
fi
exec "$PYTHON" "$BENCH/growth.py" --device cuda --json "$RESULT"
