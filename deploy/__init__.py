"""Ways to run the suite: the one-machine launcher in `local`, and the manifests and image for Kubernetes."""
