"""The services; none imports another, they talk gRPC."""
