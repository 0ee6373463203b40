//! Both providers against the one suite, and what only the embedded log can show: damage, crashes, failing disks.
#![cfg(test)]

mod conformance;
mod crash;
mod damage;
mod disk;
mod keeping;
mod near;
mod records;
