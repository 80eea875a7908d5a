"""Execution of commands: outputs and run records, files at URLs, process groups and workers."""
