"""Owns postback configurations with their secrets, and the deliveries of conversions with every attempt."""
