"""Complete DAGs, each showing what no other shows; every one of them is run by a test."""
