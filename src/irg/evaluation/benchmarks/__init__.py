"""The five benchmarks: what is asked about an image, how answers are graded and summed up."""
