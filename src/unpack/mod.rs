//! Decompression of NARs and other objects within a budget of memory and threads.
//!
//! `decoder` makes a decoder for each compression, and `budget` limits what all decoders take
//! together. `nar` unpacks a NAR and checks its format. `inspect_reader` counts and hashes what
//! passes, and `object_reader` reads an object of a store.

mod budget;
mod decoder;
mod inspect_reader;
mod nar;
mod object_reader;

pub(crate) use budget::Allowance;
pub(crate) use budget::{BOMB_RATIO, DecodeBudget};
pub(crate) use decoder::{decoder, has_no_decoder, more_memory};
pub(crate) use inspect_reader::InspectReader;
pub use nar::UnpackError;
pub(crate) use nar::Unpacked;
pub(crate) use nar::unpack;
pub(crate) use object_reader::object_reader;
