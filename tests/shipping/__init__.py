"""What is shipped: the Dockerfile, the manifests of `k8s/`, and the check of an installation, all tried for real."""
