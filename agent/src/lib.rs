//! The loop, the journal, the socket.
