//! The results, for a terminal, for a page and as a picture.

pub mod markdown;
pub mod picture;
pub mod text;
