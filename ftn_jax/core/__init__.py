"""Pure functions of arrays and of values: nothing here knows a pool, a method or a stream."""
