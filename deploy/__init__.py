"""How the suite is run: the one-machine launcher in `local`, and the manifests and image for Kubernetes."""
