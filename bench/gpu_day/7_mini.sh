# irg-mini's drawing trained for TRAIN_SECONDS (TRAIN_OPTIONS: more of irg train's), and how well it draws before and after.
set -u
export OMP_NUM_THREADS=1 TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1  # Muon needs float32 on a GPU; its products may be TF32
if [ "$DRY" = 1 ]; then
  exec "$PYTHON" "$BENCH/gpu_mini.py" --dry --rows 4 4 --trial-steps 0 --json "$RESULT"
fi
exec "$PYTHON" "$BENCH/gpu_mini.py" --seconds $((${STEP_SECONDS:-600} - 10)) --train-seconds "${TRAIN_SECONDS:-290}" \
  "--train-options=${TRAIN_OPTIONS:-}" --json "$RESULT"
