"""Streams of text."""
