//! The source against real servers: every test compares byte by byte what the log says with what the server has.

mod basics;
mod growth;
mod identity;
mod large;
mod shapes;
mod support;
mod writers;
