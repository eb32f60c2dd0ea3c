"""Low-rank experts made whole: ``W + B A`` with numpy, the same bits on every machine."""
