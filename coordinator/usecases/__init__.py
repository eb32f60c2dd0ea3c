"""What the coordinator does, one module per deed, with no gRPC and no command line in it."""
