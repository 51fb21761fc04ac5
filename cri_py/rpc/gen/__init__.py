"""Written by proto/generate.py from proto/runtime/v1/api.proto. Don't edit."""
