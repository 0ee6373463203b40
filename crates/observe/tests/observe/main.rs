//! The control socket from outside.

#[cfg(test)]
mod socket;
