//! The PostgreSQL sink against a real server.

mod altering;
mod columns;
mod errors;
mod loading;
mod parallel;
mod rig;
mod shapes;
mod streaming;
