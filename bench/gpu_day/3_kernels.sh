# Kernels that a flow step and a token launch; products with quantized weights.
set -u
if [ "$DRY" = 1 ]; then
  "$PYTHON" "$BENCH/quantized.py" --dry || exit
  exec "$PYTHON" "$BENCH/kernels.py" --model tiny --json "$RESULT"
fi
"$PYTHON" "$BENCH/quantized.py" --json "${RESULT%.json}.quantized.json"
"$PYTHON" "$BENCH/kernels.py" --model mid --device cuda --compile
exec "$PYTHON" "$BENCH/kernels.py" --model mid --device cuda --json "$RESULT"
