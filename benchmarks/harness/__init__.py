"""Cases, clocks, correctness, memory, tables: knows no op of ours."""
