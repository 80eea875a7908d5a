"""Stages: the program of each command, which connects files on the host with computation on devices."""
