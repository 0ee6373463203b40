//! The library as an application uses it: on a world in memory, where every interleaving can be had, and on real servers.
#![cfg(test)]

mod bounds;
mod guide;
mod outcomes;
mod servers;
mod world;
