"""The sample: two apps with everything a campaign needs, and traffic for them whose outcome is known."""
