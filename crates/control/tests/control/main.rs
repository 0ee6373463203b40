//! A migration's life from outside: every command in every state, and the journal that keeps it.

#[cfg(test)]
mod journal;
#[cfg(test)]
mod life;
#[cfg(test)]
mod switch;
