//! The memory budget of all decoders.
//!
//! The stream chooses the window of its decoder and the size that it unpacks to: a few hundred
//! bytes can demand gigabytes of memory and minutes of work. So each decoder runs with an
//! [`Allowance`] and a permit. A decoder that needs more than its allowance is stopped, and starts
//! again from the beginning with a larger allowance and another permit. The permits come from
//! shares that are [`DECODER_MEMORY`] together:
//!
//! - *arriving*: NARs that are unpacked during the transfer. No task waits for this share; a NAR
//!   without a permit is unpacked at rest.
//! - *at rest*: complete NARs. Unpacking them never waits for a client, so these permits are always
//!   returned.
//! - *large*: complete NARs that need a large window.
//! - *pages*: NARs whose files are listed, on threads of the lowest priority.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const MIB: u64 = 1 << 20;

/// The memory of all decoders together, in bytes.
pub(super) const DECODER_MEMORY: u64 = 512 * MIB;

/// What a decoder may take at first: enough for `xz -6` (9 MiB), `zstd -19` (8 MiB), `brotli -w 22`.
const USUAL_MEMORY: u64 = 16 * MIB;

/// Enough for `xz -9` (65 MiB) and `zstd` with a window of 64 MiB.
const LARGE_MEMORY: u64 = 72 * MIB;

/// Enough for `zstd --ultra -22`: a window of 128 MiB, the maximum of `zstd -d` without further
/// options.
const MOST_MEMORY: u64 = 136 * MIB;

/// How many NARs are unpacked at a time while they arrive.
const ARRIVING: u64 = 8;

/// How many streams are unpacked at a time when they have arrived.
const AT_REST: u64 = 4;

/// One of the largest and one large decoder, or three large ones.
const LARGE_SHARE: u64 = 224 * MIB;

/// One large decoder and one usual one.
const PAGES_SHARE: u64 = 96 * MIB;

const _: () = assert!(
    (ARRIVING + AT_REST) * USUAL_MEMORY + LARGE_SHARE + PAGES_SHARE == DECODER_MEMORY,
    "the shares are all there is"
);

/// A stream that unpacks to more than this, and to more than this many times its size, is unpacked
/// by one thread only: honest files rarely do, and a client that uploads hundreds of others must
/// not delay other clients.
const USUAL_OUTPUT: u64 = 4 * MIB;
const USUAL_RATIO: u64 = 100;

/// A stream that unpacks to more than this, and to more than this many times its size, is refused.
/// The largest honest ratios are those of sparse disk images, which are smaller or less extreme. So
/// a hostile upload costs some seconds of one core.
const MOST_OUTPUT: u64 = 8 << 30;
pub(super) const BOMB_RATIO: u64 = 1000;

/// The limits of one decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    memory: u64,
    output: u64,
}

impl Allowance {
    /// The allowance that is enough for nearly all streams.
    pub const USUAL: Self = Self { memory: USUAL_MEMORY, output: USUAL_OUTPUT };

    /// How many bytes of memory it may take.
    pub const fn memory(self) -> u64 {
        self.memory
    }

    /// Returns the maximum unpacked size for a packed size.
    pub fn output_of(self, packed: u64) -> u64 {
        let ratio = if self.output == USUAL_OUTPUT { USUAL_RATIO } else { BOMB_RATIO };
        self.output.max(packed.saturating_mul(ratio))
    }

    /// The next one with more memory; none after the largest.
    pub fn with_more_memory(self) -> Option<Self> {
        let memory = [LARGE_MEMORY, MOST_MEMORY].into_iter().find(|more| *more > self.memory)?;
        Some(Self { memory, ..self })
    }

    /// The same memory with the usual output.
    pub fn with_usual_output(self) -> Self {
        Self { output: USUAL_OUTPUT, ..self }
    }

    /// The next one with more output; none after the largest.
    pub fn with_more_output(self) -> Option<Self> {
        (self.output < MOST_OUTPUT).then_some(Self { output: MOST_OUTPUT, ..self })
    }
}

/// The memory and the threads of all decoders. A clone is the same budget.
#[derive(Debug, Clone)]
pub(super) struct DecodeBudget {
    arriving: Arc<Semaphore>,
    at_rest: Arc<Semaphore>,
    /// In MiB.
    large: Arc<Semaphore>,
    /// For what unpacks to much more than its size.
    expanding: Arc<Semaphore>,
    /// In MiB.
    #[cfg(feature = "pages")]
    pages: Arc<Semaphore>,
}

/// A permit to run a decoder with an allowance, until it is dropped.
#[derive(Debug)]
pub(super) struct DecodePermit {
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

impl Default for DecodeBudget {
    fn default() -> Self {
        let semaphore = |permits: u64| Arc::new(Semaphore::new(permits as usize));
        Self {
            arriving: semaphore(ARRIVING),
            at_rest: semaphore(AT_REST),
            large: semaphore(LARGE_SHARE / MIB),
            expanding: semaphore(1),
            #[cfg(feature = "pages")]
            pages: semaphore(PAGES_SHARE / MIB),
        }
    }
}

/// The semaphores are never closed.
async fn acquire(semaphore: &Arc<Semaphore>, permits: u64) -> Option<OwnedSemaphorePermit> {
    Arc::clone(semaphore).acquire_many_owned(permits as u32).await.ok()
}

impl DecodeBudget {
    /// Returns a permit for [`Allowance::USUAL`] during the transfer, or `None` if there is none
    /// immediately. The holder must return it if the transfer becomes slow.
    pub(super) fn arriving(&self) -> Option<DecodePermit> {
        let permit = Arc::clone(&self.arriving).try_acquire_owned().ok()?;
        Some(DecodePermit { _permits: [Some(permit), None] })
    }

    /// Waits for a permit for input that has arrived.
    pub(super) async fn at_rest(&self, allowance: Allowance) -> DecodePermit {
        let expanding = match allowance.output {
            USUAL_OUTPUT => None,
            _ => acquire(&self.expanding, 1).await,
        };
        let memory = match allowance.memory {
            USUAL_MEMORY => acquire(&self.at_rest, 1).await,
            memory => acquire(&self.large, memory / MIB).await,
        };
        DecodePermit { _permits: [expanding, memory] }
    }

    /// Waits for a permit for a NAR whose files are listed. None where the allowance is more than
    /// pages may have.
    #[cfg(feature = "pages")]
    pub(super) async fn for_pages(&self, allowance: Allowance) -> Option<DecodePermit> {
        if allowance.memory > LARGE_MEMORY {
            return None;
        }
        let memory = acquire(&self.pages, allowance.memory / MIB).await;
        Some(DecodePermit { _permits: [memory, None] })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn each_step_has_more_and_there_is_a_last_one() {
        let large = Allowance::USUAL.with_more_memory().unwrap();
        let most = large.with_more_memory().unwrap();
        assert!(Allowance::USUAL.memory < large.memory && large.memory < most.memory);
        assert_eq!(most.with_more_memory(), None);
        let expanding = most.with_more_output().unwrap();
        assert_eq!(expanding.memory, most.memory);
        assert_eq!(expanding.with_more_output(), None);
    }

    #[test]
    fn decoders_of_every_share_fit_into_the_whole_and_more_wait() {
        let budget = DecodeBudget::default();
        let large = Allowance::USUAL.with_more_memory().unwrap();
        let most = large.with_more_memory().unwrap();
        let mut permits = Vec::new();
        let mut memory = 0;
        while let Some(permit) = budget.arriving() {
            permits.push(permit);
            memory += Allowance::USUAL.memory;
        }
        for allowance in [Allowance::USUAL, most, large] {
            while let Some(permit) = budget.at_rest(allowance).now_or_never() {
                permits.push(permit);
                memory += allowance.memory;
            }
        }
        assert!(memory <= DECODER_MEMORY - PAGES_SHARE, "{memory}");
        assert_eq!(permits.len(), 8 + 4 + 2);
        permits.clear();
        assert!(budget.at_rest(most).now_or_never().is_some());
    }

    #[test]
    fn one_stream_at_a_time_unpacks_to_much_more_than_its_size() {
        let budget = DecodeBudget::default();
        let expanding = Allowance::USUAL.with_more_output().unwrap();
        let permit = budget.at_rest(expanding).now_or_never();
        assert!(permit.is_some() && budget.at_rest(expanding).now_or_never().is_none());
        // Others do not wait for it.
        assert!(budget.at_rest(Allowance::USUAL).now_or_never().is_some());
    }
}
