"""How memory behaves, and what the leak verdict makes of it: recorded and made histories, and a table.

python -m benchmarks.memory_histories record             # every load, in real runners: some 25 minutes
python -m benchmarks.memory_histories record --loads embed generate --seconds 120
python -m benchmarks.memory_histories report             # right verdicts, time to alarm, the slowest leak found
python -m benchmarks.memory_histories report --seeds 500
"""
