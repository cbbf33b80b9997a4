//! Hostile and ordinary programs, made byte by byte.
