# Kernels that a flow step and a token launch.
set -u
if [ "$DRY" = 1 ]; then
  exec "$PYTHON" "$BENCH/kernels.py" --model tiny --json "$RESULT"
fi
"$PYTHON" "$BENCH/kernels.py" --model mid --device cuda --compile
exec "$PYTHON" "$BENCH/kernels.py" --model mid --device cuda --json "$RESULT"
