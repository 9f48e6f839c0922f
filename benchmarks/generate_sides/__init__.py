"""What `benchmarks.generate` compares, each with the same load."""
