"""What every service is built from; nothing here knows a domain."""
