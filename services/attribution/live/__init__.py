"""Decides what arrives: owns lanes, reads the log, loads, decides, writes, and hands decisions on."""
