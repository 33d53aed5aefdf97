"""The five benchmarks by name (apart from ``base.py``, which each of them imports)."""

from irg.evaluation.benchmarks.base import Benchmark
from irg.evaluation.benchmarks.genai_bench import GENAI_BENCH
from irg.evaluation.benchmarks.geneval import GENEVAL
from irg.evaluation.benchmarks.oneig import ONEIG
from irg.evaluation.benchmarks.tiif import TIIF
from irg.evaluation.benchmarks.wise import WISE

BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in (GENEVAL, WISE, TIIF, GENAI_BENCH, ONEIG)}
