"""Every query on the tracker schema: the store opens views of it, and views read and change resources."""
