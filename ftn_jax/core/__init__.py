"""Pure functions of arrays and plain values; nothing here knows about pools, methods or streams."""
