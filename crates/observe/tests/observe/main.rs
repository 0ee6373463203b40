//! The control socket of a work folder, asked from outside as the commands ask it: every route, its refusals, and its end.

#[cfg(test)]
mod socket;
