"""What the project measures, each `python -m benchmarks.NAME`; dated figures are in RESULTS.md."""
