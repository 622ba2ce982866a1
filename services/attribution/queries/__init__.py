"""Tells of decisions: why, what since, what is offered."""
