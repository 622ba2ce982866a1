"""From the JSON of a server-to-server sender to a record, and from what is wrong with a record back to that JSON."""
