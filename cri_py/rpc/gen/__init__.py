"""Written by proto/generate.py from proto/*/v1/*.proto. Don't edit."""
