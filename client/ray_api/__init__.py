"""Ray's Job API over HTTP. Nothing here knows of Kubernetes."""
