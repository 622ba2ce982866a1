"""Owns engagements, devices and decisions: decides which ad drove an install or a return, and can say why."""
