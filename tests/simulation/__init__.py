"Deterministic simulation of the execution path: `python -m tests.simulation --help`, docs/concepts/simulation.md."
