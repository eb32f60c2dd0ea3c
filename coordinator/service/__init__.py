"""gRPC in front of the use cases: decode, call, encode."""
