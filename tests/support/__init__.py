"""What tests and benchmarks stand on: ports, processes, services in this process, waiting for facts."""
