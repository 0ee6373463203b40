//! The state as its users see it: one suite for both stores, kills, damage, and the bytes on disk.

#[cfg(test)]
mod crash;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod formats;
#[cfg(test)]
mod suite;
