//! The way of an upload's body into the store: in constant memory, and off the reactor.
//!
//! A small body is collected and stored in one step. A large body is received by an async task, and
//! handed over in batches to the blocking pool, which hashes and stages them. While one batch is
//! staged, at most one more is gathered: if the disk is slower than the network, the socket is not
//! read and the client waits. No thread is held between two batches, except by NARs that are
//! unpacked during the transfer.
//!
//! Maximum cost of an upload: the buffer of its connection, and `BATCH` bytes
//! on either side; while it is unpacked, also `BATCHES_IN_FLIGHT` batches in between, and a
//! decoder.
//!
//! `feed` splits a body into batches, and notices when it is slow. `collect` gathers a small body in
//! memory or a temporary file, and `receive` stages a large one: `stage` hashes and writes, and
//! `staging_reader` feeds a decoder during the transfer. `pool` runs work on the blocking pool.

mod collect;
mod error;
mod feed;
mod large_narinfos;
mod pool;
mod receive;
mod stage;
mod staging_reader;

pub(crate) use collect::{
    MEMORY_BODY_LIMIT, collect, decode, decode_at_rest, encoding_decoder, encoding_error, read_at,
};
pub use error::{BodyError, PutError};
pub(crate) use feed::{Feed, TransferLimit, TransferPermit};
pub(crate) use large_narinfos::LargeNarInfos;
pub(crate) use pool::on_blocking_pool;
pub(crate) use receive::{
    check_length, commit, push, receive, start_upload, unpack_while_it_flows,
};
pub(crate) use stage::{Stage, Staged};
pub(crate) use staging_reader::StagingReader;
#[cfg(feature = "upstream")]
pub(crate) use {feed::BATCH, pool::joined};
