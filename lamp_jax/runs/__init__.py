"""How a command runs: its outputs and records, files at URLs, the processes and workers that share it."""
