//! Rules about the tree itself: who may use whom, what may be linked, what every crate and page must have.
//! An invariant that nobody runs is a wish.
#![cfg(test)]

mod arrows;
mod containers;
mod graph;
mod licences;
mod pages;
mod tree;
