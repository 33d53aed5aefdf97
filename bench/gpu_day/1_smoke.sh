# Golden cases on the device in float32, and the tests marked gpu. Two lines of pytest's are the result.
set -uo pipefail
cd "$BENCH/.."
if [ "$DRY" = 1 ]; then
  golden=(tests/golden/test_tables.py --golden-device cpu) marked=(tests/test_deprecation.py)
else
  golden=(tests/golden --golden-device cuda) marked=(tests -m gpu)
fi
code=0
"$PYTHON" -m pytest -p no:cacheprovider "${golden[@]}" 2>&1 | tee "$RESULT.1" || code=1
"$PYTHON" -m pytest -p no:cacheprovider "${marked[@]}" 2>&1 | tee "$RESULT.2" || code=1
printf '{"golden": "%s", "marked": "%s"}\n' "$(tail -n 1 "$RESULT.1" | tr -d '"\\')" "$(tail -n 1 "$RESULT.2" | tr -d '"\\')" > "$RESULT"
rm -f "$RESULT.1" "$RESULT.2"
exit $code
