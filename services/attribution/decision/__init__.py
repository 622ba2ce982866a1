"""Decides, purely: values in, a decision out that says what and why (sections A to G of the rules)."""
