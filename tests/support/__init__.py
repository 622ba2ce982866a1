"""The ground of tests and benchmarks: ports, processes, services in this process, waiting for facts."""
