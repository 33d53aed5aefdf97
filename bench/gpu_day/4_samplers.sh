# Error of the samplers by steps, on irg-mini.
set -u
if [ "$DRY" = 1 ]; then
  exec "$PYTHON" "$BENCH/steps.py" --prompts 1 --steps 2 --truth 3 --samplers euler "euler, gap 0.11" --json "$RESULT"
fi
exec "$PYTHON" "$BENCH/steps.py" --json "$RESULT"
