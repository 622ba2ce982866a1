"""The rules that several services must read alike, each once."""
