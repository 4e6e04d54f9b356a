//! Code that several targets use.

pub mod nar;
