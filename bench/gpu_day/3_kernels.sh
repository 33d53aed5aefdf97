# Where the time goes at BAGEL-7B's size; products with quantized weights; kernels that a flow step and a token launch.
set -u
if [ "$DRY" = 1 ]; then
  "$PYTHON" "$BENCH/quantized.py" --dry || exit
  exec "$PYTHON" "$BENCH/kernels.py" --model tiny --json "$RESULT"
fi
"$PYTHON" "$BENCH/gpu_profile.py" --memory-modes bf16 --compile
"$PYTHON" "$BENCH/quantized.py" --json "${RESULT%.json}.quantized.json"
"$PYTHON" "$BENCH/kernels.py" --model mid --device cuda --compile
exec "$PYTHON" "$BENCH/kernels.py" --model mid --device cuda --json "$RESULT"
