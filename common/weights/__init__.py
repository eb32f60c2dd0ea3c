"""Weights as bytes: digests, headers, packages and assembly, in constant memory and without a tensor library."""
