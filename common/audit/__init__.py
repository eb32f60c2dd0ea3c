"""The auditor: offline checks that trust one root certificate and nobody else, and the ``elmgrove-audit`` command line."""
