"""Lifelong learning over a stream: new and known tasks, growing pools, forgetting on request."""
