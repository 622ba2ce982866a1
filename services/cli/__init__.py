"""The command line of the product: it calls the services, and owns nothing."""
