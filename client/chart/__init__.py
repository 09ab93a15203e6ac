"""The Helm chart, installed and removed."""
