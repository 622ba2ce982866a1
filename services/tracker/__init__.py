"""Tracker owns every setting: apps, networks, campaigns, segments, trackers and event definitions, by revision."""
