"""Plain HTTP for reading: the log's files for auditors, and a health check for whoever runs the machine."""
