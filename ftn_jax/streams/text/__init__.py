"""Streams of text, and how their examples are read, checked and batched."""
