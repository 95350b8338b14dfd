"""What the documentation site makes of the package when it is built."""
