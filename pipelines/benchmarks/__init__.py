"Benchmarks: one module per room, each with `main() -> [(name, value, unit)]`; `make bench` runs them."
