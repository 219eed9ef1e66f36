//! The API over mutual TLS, HTTP/2, one connection kept open.
