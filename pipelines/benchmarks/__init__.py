"Benchmarks: one module per room, each with `main() -> [(name, value, unit)]`; `make bench` runs them."

Result = tuple[str, float, str]  # dotted name, value, unit
