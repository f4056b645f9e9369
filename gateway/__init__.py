"""The S3 door: HTTP app, signatures, XML, one operation per function."""
