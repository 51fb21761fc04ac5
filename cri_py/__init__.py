"""A container runtime for Kubernetes nodes."""
