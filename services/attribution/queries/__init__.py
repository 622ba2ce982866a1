"""Answers questions about decisions: why, what since, what is offered."""
