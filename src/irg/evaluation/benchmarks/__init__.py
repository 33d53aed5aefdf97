"""The five benchmarks: questions about an image, grades of the answers, and sums."""
