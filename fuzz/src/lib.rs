//! What the targets share.

pub mod nar;
