"""The ground that every service is built on; nothing here knows a domain, except `domain` and `client`."""
