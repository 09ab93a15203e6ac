"""The Kubernetes API server. Nothing here knows of Ray but the RayCluster object."""
