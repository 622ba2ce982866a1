"""The kinds of networks that postbacks are sent to, each in a module of its own."""
