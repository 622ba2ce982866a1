"""Every query on the schema `postback`, a module for each family."""
