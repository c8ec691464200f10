//! HTTP/3 beside relay streams on one QUIC connection.
