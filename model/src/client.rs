//! Client of the Unix socket.
