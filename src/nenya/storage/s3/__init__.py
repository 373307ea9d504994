"""Objects of S3 services: listed, read, written and verified."""
