//! Behaviour of a session on the host, against real files.
